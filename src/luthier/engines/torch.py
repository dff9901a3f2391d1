"""PyTorch, in this process: every stored base and everything that tuning makes of it.

Adapters of one base share it in memory and are switched from step to step. Prompts that begin alike are read once, labels are scored
side by side in one forward, and answers of one call are decoded together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.engine import (
    EMBED,
    GENERATE,
    SCORE,
    STREAM,
    ContinuationScore,
    Delta,
    Engine,
    EngineInfo,
    Generation,
    Sampling,
    ScoreRequest,
    Vectors,
)
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import Prompt
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.data.batch import order_by_length, pad
from luthier.engines._answer import Answer
from luthier.engines._scoring import ask
from luthier.engines._shared import SharedBase
from luthier.models.decode import attends_fully, hidden_states
from luthier.models.fast_linear import speed_up_linear
from luthier.models.generate import Answering
from luthier.models.load import LoadedModel
from luthier.models.mixed import beginning, row_names, shared_tokens, stacked
from luthier.models.prefix import KeysValues, shared_prefix
from luthier.models.score import Read, Row, score_batches

if TYPE_CHECKING:
    from luthier.engines._target import EngineTarget

_MOST_ROWS = 64
"""Answers that are decoded together; beyond that a step takes longer in proportion."""


class Config(EntryConfig):
    """``dtype`` auto is bf16 where the hardware computes in it, else fp32; ``device`` auto, cpu, cuda, cuda:N or mps.

    ``max_batch_tokens`` bounds what one forward reads, padding included; left out, 1024 on a CPU (more overflows its caches) and
    16384 elsewhere. Answers are decoded together up to eight times as many tokens, new ones included. ``threads`` of the CPU (for
    the whole process); left out, the physical cores.
    """

    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    device: str = "auto"
    max_batch_tokens: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)


def open(model: EngineTarget, config: Config) -> Engine:  # noqa: A001 - the name of the catalogue's function
    """A decoder, an encoder or an encoder-decoder from the store. Bases are shared among targets that carry the same ``shared`` mapping.

    Raises UnsupportedError for records without torch weights, and what loading raises (``models.load``, ``models.attach``).
    """
    from luthier.models.load import set_threads

    record, store = model.record, model.store
    if record is None or store is None:
        raise InputError(f"engine torch opens stored models; {model.name!r} is none", hint="luthier models")
    if record.kind not in ("base", "adapter"):
        raise UnsupportedError(
            f"engine torch opens base models and adapters; {record.name} is an {record.kind}",
            hint="use engine llamacpp for an export; an endpoint is opened by its name",
        )
    if config.threads is not None:
        set_threads(config.threads)
    base, key = _share(model, record, config)
    base.join(key, record if key is not None else None)
    try:
        with base.using(key) as loaded:
            speed_up_linear(loaded.module)
            info = _info(model.name, record, loaded, key)
            most = config.max_batch_tokens or (1024 if loaded.device.type == "cpu" else 16384)
    except BaseException:
        base.leave(key)
        raise
    if record.architecture == "encoder":
        from luthier.engines._encoder import EncoderEngine

        return EncoderEngine(base, key, info, most)
    if record.architecture == "encoder-decoder":
        from luthier.engines._seq2seq import EncoderDecoderEngine

        return EncoderDecoderEngine(base, key, info, most)
    return DecoderEngine(base, key, info, most)


def _share(model: EngineTarget, record: ModelRecord, config: Config) -> tuple[SharedBase, str | None]:
    """The base that ``record`` lives on, and its key there (None: it is the base, or whole weights of its own)."""
    from luthier.models.attach import load_base, quantization_of, read_manifest
    from luthier.models.load import load_model
    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    store = model.store
    assert store is not None
    under, key, quantization = record, None, None
    if record.kind == "adapter":
        manifest = read_manifest(path_of(store, record.digest))
        if manifest["saves"] != "weights":
            under, key = find(store, record.base or manifest["base"]["name"]), record.digest
            quantization = quantization_of(manifest)
    load = load_model if key is None else load_base
    own = key is None and record.kind == "adapter"
    place = ("torch", str(store.home.root), under.digest, own, config.dtype, config.device, quantization)
    shared = model.shared
    if place not in shared:
        shared[place] = SharedBase(
            store,
            lambda: load(store, under, dtype=config.dtype, device=config.device, quantization=quantization),
            lambda: shared.pop(place, None),
        )
    return shared[place], key


def _info(name: str, record: ModelRecord, loaded: LoadedModel, key: str | None) -> EngineInfo:
    labels = loaded.labels if record.architecture == "encoder" else ()
    can = {GENERATE, STREAM, SCORE, EMBED} if record.architecture != "encoder" or labels else {EMBED}
    others = [f".{a.peft_name}." for other, a in loaded.attached.items() if other != key and a.peft_name]
    held = sum(t.nbytes for n, t in loaded.module.named_parameters() if not any(other in f"{n}." for other in others))
    held += loaded.light.nbytes(key) if loaded.light is not None else 0
    return EngineInfo(
        model=name,
        engine="torch",
        capabilities=frozenset(can),
        model_digest=record.digest,
        base_digest=loaded.base.digest,
        template_digest=loaded.template_digest,
        context_length=loaded.context_length,
        labels=labels,
        meta=(
            ("dtype", str(loaded.dtype).removeprefix("torch.")),
            ("device", str(loaded.device)),
            ("weights_mb", held / 1e6),
        ),
    )


class DecoderEngine:
    """A causal language model, or one of its adapters."""

    def __init__(self, base: SharedBase, key: str | None, info: EngineInfo, max_batch_tokens: int) -> None:
        self._base, self._key, self._info = base, key, info
        self._max_batch_tokens = max_batch_tokens
        self._open = True
        with base.using(key) as loaded:
            assert loaded.renderer is not None  # decoders have one
            self._renderer, self._device = loaded.renderer, loaded.device
            self._full_attention = attends_fully(loaded.module)

    @property
    def info(self) -> EngineInfo:
        """What answers."""
        return self._info

    @property
    def shared_base(self) -> SharedBase:
        """The base in memory; engines with the same one may be asked together (``engines._mixed``)."""
        return self._base

    @property
    def key(self) -> str | None:
        """The adapter that answers, by its name on the base; None: the base itself."""
        return self._key

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt, decoded together; an answer does not depend on what else is asked (in fp32, to rounding).

        Raises InputError when a prompt fills the context. ``max_new_tokens`` is cut to what fits after the prompt.
        """
        return self.generate_as([self._key] * len(prompts), prompts, sampling, progress)

    def generate_as(
        self,
        keys: Sequence[str | None],
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Progress = no_progress,
    ) -> list[Generation]:
        """``generate``, row i answered by the adapter ``keys[i]`` of the same base (None: by the base itself).

        Several of them must be ones that one forward can take (``models.mixed.groups``).
        """
        ids = self._prompt_ids(prompts)
        if not ids:
            return []
        shared, prefixes = self._prefixes(ids, keys)
        answers = [self._answer(row, sampling, incremental=bool(sampling.stop)) for row in ids]
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        told = 0
        for batch in self._batches([len(row) - shared for row in ids], [answer.limit for answer in answers]):
            rows = sorted(batch, key=lambda row: first[keys[row]])  # an adapter's rows side by side
            for _ in self._decode([answers[i] for i in rows], [keys[i] for i in rows], sampling, shared, prefixes):
                done = sum(bool(answer.finish_reason) for answer in answers)
                if done > told:
                    told = done
                    progress("generate", done, len(ids))
        return [answer.generation() for answer in answers]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The answer piece by piece. Between pieces the model is free for others. Raises as ``generate``, before the first piece."""
        ids = self._prompt_ids([prompt])
        answer = self._answer(ids[0], sampling, incremental=True)
        return self._pieces(answer, sampling)

    def _pieces(self, answer: Answer, sampling: Sampling) -> Iterator[Delta]:
        shared, prefixes = self._prefixes([answer.prompt], [self._key])
        for piece in self._decode([answer], [self._key], sampling, shared, prefixes):
            if piece:
                yield Delta(piece)
        yield Delta("", answer.generation())

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Log-likelihood of each continuation; what requests have in common is computed once.

        In fp32 a score does not depend on what else is asked, nor on the order (to rounding). Raises InputError for an empty
        continuation, or a prompt and continuation that together pass the context.
        """
        asked = ask(requests, self._renderer, self._info)
        rows = [Row(row.prompt, row.continuations) for row in asked.rows]
        with self._base.using(self._key) as loaded:
            batches = score_batches(
                loaded.module,
                rows,
                loaded.device,
                max_batch_tokens=self._max_batch_tokens,
                memory=self._base.memory,
                owner=self._key,
            )
        out: list[list[Read]] = [[]] * len(rows)
        done = 0
        while True:
            with self._base.using(self._key):
                scored = next(batches, None)
            if scored is None:
                return asked.scores(out)
            for index, read in scored:
                out[index] = read
            done += len(scored)
            progress("score", done, len(rows))

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Unit-length means of the last hidden states over the raw text's tokens, shape (texts, width), float32."""
        ids = self._prompt_ids(texts)
        with self._base.using(self._key) as loaded:
            width = loaded.module.get_input_embeddings().weight.shape[1]
        out = np.zeros((len(ids), width), dtype=np.float32)
        done = 0
        for batch in order_by_length([len(row) for row in ids], self._max_batch_tokens):
            with self._base.using(self._key) as loaded:
                out[batch] = _mean_hidden(loaded, [ids[i] for i in batch])
            done += len(batch)
            progress("embed", done, len(ids))
        return out

    def close(self) -> None:
        """Give the base up; it is freed when nobody else uses it."""
        if self._open:
            self._open = False
            self._base.leave(self._key)

    def _prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        ids = self._renderer.prompt_ids_batch(prompts)
        for number, row in enumerate(ids):
            if len(row) >= self._info.context_length:
                which = f"prompt {number + 1} of {len(ids)}" if len(ids) > 1 else "the prompt"
                raise InputError(
                    f"{which} has {len(row)} tokens; {self._info.model} reads {self._info.context_length} in all, answer included"
                )
        return ids

    def _prefixes(
        self, ids: Sequence[Sequence[int]], keys: Sequence[str | None]
    ) -> tuple[int, dict[str | None, KeysValues]]:
        """How many first tokens need no forward in their rows, and their keys and values by adapter."""
        memory, distinct = self._base.memory, list(dict.fromkeys(keys))
        if len(distinct) == 1:
            (key,) = distinct
            with self._base.using(key) as loaded:
                shared, values = shared_prefix(loaded.module, ids, self._device, memory, key)
            return shared, {key: values or []}
        if not self._full_attention:
            return 0, {}
        with self._base.using(*distinct) as loaded:
            shared = shared_tokens(loaded.module, ids, keys, row_names(loaded, keys))
        out: dict[str | None, KeysValues] = {}
        for key in distinct if shared else ():
            own = ids[keys.index(key)][:shared]
            with self._base.using(*distinct) as loaded:
                (name,) = row_names(loaded, [key])
                out[key] = beginning(loaded.module, own, self._device, memory, key, name)
        return shared, out

    def _answer(self, prompt: list[int], sampling: Sampling, *, incremental: bool) -> Answer:
        limit = min(sampling.max_new_tokens, self._info.context_length - len(prompt))
        return Answer(prompt, limit, self._renderer, sampling.stop, incremental=incremental)

    def _batches(self, lengths: list[int], limits: list[int]) -> Iterator[list[int]]:
        """Rows to decode together. Models with windowed layers take rows of one length only."""
        most = 8 * self._max_batch_tokens
        if self._full_attention:
            sizes = [length + limit for length, limit in zip(lengths, limits, strict=True)]
            yield from order_by_length(sizes, most, max_rows=_MOST_ROWS)
            return
        for length in sorted(set(lengths), reverse=True):
            rows = [i for i, own in enumerate(lengths) if own == length]
            sizes = [length + limits[i] for i in rows]
            yield from order_by_length(sizes, most, max_rows=_MOST_ROWS, names=rows)

    def _decode(
        self,
        answers: Sequence[Answer],
        keys: Sequence[str | None],
        sampling: Sampling,
        shared: int,
        prefixes: Mapping[str | None, KeysValues],
    ) -> Iterator[str]:
        """Fill ``answers``; after each step yields the first one's new text, with the model free for others meanwhile."""
        distinct = tuple(dict.fromkeys(keys))
        with self._base.using(*distinct) as loaded:
            names = row_names(loaded, keys) if len(distinct) > 1 else None
        batch = Answering(
            [answer.prompt for answer in answers],
            replace(sampling, max_new_tokens=max(answer.limit for answer in answers)),
            self._device,
            prefix=prefixes.get(keys[0]),
            shared=shared,
            full_attention=self._full_attention,
            read_tokens=self._max_batch_tokens,
            names=names,
            own_prefixes=None if names is None else lambda: stacked(prefixes, keys, shared),
        )
        for answer in answers:
            answer.begin()
        first = True
        while not batch.done:
            with self._base.using(*distinct) as loaded:
                rows, tokens, log_probs = batch.step(loaded.module)
                if first and len(answers) == 1 and self._full_attention:
                    self._base.memory.put(keys[0], answers[0].prompt, batch.prompt_cache())
            first = False
            pieces = [answers[r].take(t, p) for r, t, p in zip(rows, tokens, log_probs, strict=True)]
            batch.finish(row for row in rows if answers[row].finish_reason)
            yield pieces[0]


@torch.inference_mode()
def _mean_hidden(loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> Vectors:
    batch = pad(rows, 0)
    hidden = hidden_states(
        loaded.module, batch.ids.to(loaded.device)
    ).float()  # causal: padding on the right is never seen
    mask = batch.attention_mask.to(loaded.device)[:, :, None].float()
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return np.asarray(vectors.cpu().numpy(), dtype=np.float32)
