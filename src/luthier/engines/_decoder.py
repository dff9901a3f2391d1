"""The torch engine for decoders: prompts that begin alike are read once, and answers of one call are decoded together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from luthier.core.engine import ContinuationScore, Delta, EngineInfo, Generation, Sampling, ScoreRequest, Vectors
from luthier.core.errors import ContextLengthError
from luthier.core.message import Prompt
from luthier.core.run import Progress, no_progress
from luthier.data.batch import pad
from luthier.engines._answer import Answer
from luthier.engines._on_base import TextEngine, finished
from luthier.engines._places import Row, answered
from luthier.engines._scoring import ask
from luthier.models.beam import BeamSearch
from luthier.models.decode import attends_fully, hidden_states
from luthier.models.generate import Answering
from luthier.models.load import LoadedModel
from luthier.models.mixed import beginning, row_names, shared_tokens, stacked
from luthier.models.prefix import KeysValues, shared_prefix
from luthier.models.sample import RowSampler
from luthier.models.score import Row as ScoreRow
from luthier.models.score import score_batches
from luthier.models.slots import supports

if TYPE_CHECKING:
    from luthier.engines._shared import SharedBase

_FEW = 8
"""Prompts of one call that join the running batch of their base. More of them fill a batch of their own, which reads what they share once and
whose answers do not depend, not even by rounding, on what was asked before."""

_READ_SHARE = 4
"""A step of the running batch reads this part of ``max_batch_tokens`` of prompts: the answers beside them wait for it, and on a CPU longer
pieces are not read faster."""


class DecoderEngine(TextEngine):
    """A causal language model, or one of its adapters."""

    def __init__(self, base: SharedBase, key: str | None, info: EngineInfo, max_batch_tokens: int) -> None:
        super().__init__(base, key, info, max_batch_tokens)
        with base.using(key) as loaded:
            self._full_attention = attends_fully(loaded.module)

    @property
    def shared_base(self) -> SharedBase:
        """The base in memory; engines with the same one may be asked together (``engines._mixed``)."""
        return self._base

    @property
    def key(self) -> str | None:
        """The adapter that answers, by its name on the base; None: the base itself."""
        return self._key

    def stats(self) -> dict[str, float]:
        """Answers that grow and wait now, and counts since the base was loaded; all models on one base say the same."""
        scheduler = self._base.scheduler
        return {"running": scheduler.running, "waiting": scheduler.waiting, **asdict(scheduler.stats)}

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt, decoded together; an answer does not depend on what else is asked (in fp32, to rounding).

        A few prompts join what other threads ask at the same time (``engines._scheduler``), many are a batch of their own. Raises InputError when
        a prompt fills the context. ``max_new_tokens`` is cut to what fits after the prompt.
        """
        if sampling.beams > 1:
            return self._search(prompts, sampling, progress)
        if not prompts or len(prompts) > _FEW or not self._joins:
            return self.generate_as([self._key] * len(prompts), prompts, sampling, progress)
        told: SimpleQueue[Any] = SimpleQueue()
        answers = [self._answer(row, sampling) for row in self._prompt_ids(prompts, sampling)]
        rows = [
            self._row(answer, sampler, told, streams=False)
            for answer, sampler in zip(answers, self._samplers(answers, sampling), strict=True)
        ]
        for done, _ in enumerate(answered(self._base.scheduler.submit, rows), start=1):
            progress("generate", done, len(rows))
        return [answer.generation() for answer in answers]

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
        ids = self._prompt_ids(prompts, sampling)
        if not ids:
            return []
        shared, prefixes = self._prefixes(ids, keys)
        answers = [self._answer(row, sampling) for row in ids]
        samplers = self._samplers(answers, sampling)
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        batches = (
            sorted(batch, key=lambda row: first[keys[row]])  # an adapter's rows side by side
            for batch in self._batches([len(row) - shared for row in ids], [answer.limit for answer in answers])
        )
        steps = (
            self._decode(
                [answers[i] for i in rows], [keys[i] for i in rows], [samplers[i] for i in rows], shared, prefixes
            )
            for rows in batches
        )
        return finished(answers, chain.from_iterable(steps), progress)

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Log-likelihood of each continuation; what requests have in common is computed once.

        In fp32 a score does not depend on what else is asked, nor on the order (to rounding). Raises InputError for an empty
        continuation, or a prompt and continuation that together pass the context.
        """
        asked = ask(requests, self._renderer, self._info)
        rows = [ScoreRow(row.prompt, row.continuations) for row in asked.rows]
        with self._base.using(self._key) as loaded:
            batches = score_batches(
                loaded.module,
                rows,
                loaded.device,
                max_batch_tokens=self._max_batch_tokens,
                memory=self._base.memory,
                owner=self._key,
            )
        return asked.scores(self._scored(batches, len(rows), progress))

    def _room(self, prompt: Sequence[int]) -> int:
        return self._info.context_length - len(prompt)

    def _require_fits(self, prompt: Sequence[int], which: str) -> None:
        if self._room(prompt) < 1:
            raise ContextLengthError(
                f"{which} has {len(prompt)} tokens; {self._info.model} reads {self._info.context_length} in all, answer included"
            )

    def _search(self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress) -> list[Generation]:
        """The answers that a beam search finds."""
        answers = [self._answer(row, sampling) for row in self._prompt_ids(prompts, sampling)]
        done = 0
        for batch, _ in self._searches(answers, sampling):
            done += len(batch)
            progress("generate", done, len(answers))
        return [answer.generation() for answer in answers]

    def _searches(self, answers: Sequence[Answer], sampling: Sampling) -> Iterator[tuple[list[int], Delta]]:
        """Fill ``answers`` batch by batch; yields which are filled, and what the last of them shows."""
        samplers = self._samplers(answers, sampling)
        sizes = [len(answer.prompt) for answer in answers]
        for batch in self._batches(sizes, [answer.limit for answer in answers], sampling.beams):
            search = BeamSearch(
                [answers[i].prompt for i in batch],
                [samplers[i] for i in batch],
                [answers[i].limit for i in batch],
                self._renderer.stop_ids,
                self._device,
                full_attention=self._full_attention,
                read_tokens=self._max_batch_tokens,
            )
            for i in batch:
                answers[i].begin()
            while not search.done:
                with self._base.using(self._key) as loaded:
                    search.step(loaded.module)
            for i, beam in zip(batch, search.found, strict=True):
                shown = answers[i].take_all(beam.tokens, beam.log_probs, beam.top)
            yield batch, shown

    def _alone(self, answer: Answer, sampler: RowSampler) -> Iterator[Delta]:
        if sampler.sampling.beams > 1:
            yield from (shown for _, shown in self._searches([answer], sampler.sampling))
            return
        if self._joins:
            row = self._row(answer, sampler, SimpleQueue(), streams=True)
            yield from (told for _, told in answered(self._base.scheduler.submit, [row]) if told is not None)
            return
        shared, prefixes = self._prefixes([answer.prompt], [self._key])
        yield from self._decode([answer], [self._key], [sampler], shared, prefixes)

    @cached_property
    def _joins(self) -> bool:
        """Whether its answers can run beside others (``models.slots``)."""
        with self._base.using(self._key) as loaded:
            held = loaded.attached[self._key] if self._key is not None else None
            if held is None or held.light:  # these change nothing in how the base attends
                self._base.choose(loaded, [None])
            return supports(loaded.module, self._device)

    def _row(self, answer: Answer, sampler: RowSampler, told: SimpleQueue[Any], *, streams: bool) -> Row:
        read_tokens = max(1, self._max_batch_tokens // _READ_SHARE)
        return Row(self._key, answer, sampler, told, read_tokens=read_tokens, streams=streams)

    def _means(self, loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> Vectors:
        return mean_hidden(loaded, rows)

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

    def _batches(self, lengths: list[int], limits: list[int], copies: int = 1) -> Iterator[list[int]]:
        """Rows to decode together, each ``copies`` times. Models with windowed layers take rows of one length only."""
        if self._full_attention:
            sizes = [copies * (length + limit) for length, limit in zip(lengths, limits, strict=True)]
            yield from self._together(sizes, copies=copies)
            return
        for length in sorted(set(lengths), reverse=True):
            rows = [i for i, own in enumerate(lengths) if own == length]
            sizes = [copies * (length + limits[i]) for i in rows]
            yield from self._together(sizes, rows, copies=copies)

    def _decode(
        self,
        answers: Sequence[Answer],
        keys: Sequence[str | None],
        samplers: Sequence[RowSampler],
        shared: int,
        prefixes: Mapping[str | None, KeysValues],
    ) -> Iterator[Delta]:
        """Fill ``answers``; after each step yields what the first one shows, with the model free for others meanwhile."""
        distinct = tuple(dict.fromkeys(keys))
        with self._base.using(*distinct) as loaded:
            names = row_names(loaded, keys) if len(distinct) > 1 else None
        batch = Answering(
            [answer.prompt for answer in answers],
            Sampling(max_new_tokens=max(answer.limit for answer in answers)),
            self._device,
            samplers=samplers,
            prefix=prefixes.get(keys[0]),
            shared=shared,
            full_attention=self._full_attention,
            read_tokens=self._max_batch_tokens,
            names=names,
            own_prefixes=None if names is None else lambda: stacked(prefixes, keys, shared),
        )
        alone = len(answers) == 1 and self._full_attention

        def remember() -> None:
            if alone:
                self._base.memory.put(keys[0], answers[0].prompt, batch.prompt_cache())

        yield from self._grow(answers, batch, distinct, samplers, after_prompt=remember)


@torch.inference_mode()
def mean_hidden(loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> Vectors:
    """Unit-length means of the last hidden states, (rows, width)."""
    batch = pad(rows, 0)
    hidden = hidden_states(
        loaded.module, batch.ids.to(loaded.device)
    ).float()  # causal: padding on the right is never seen
    mask = batch.attention_mask.to(loaded.device)[:, :, None].float()
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return np.asarray(vectors.cpu().numpy(), dtype=np.float32)
