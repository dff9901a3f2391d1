"""llama.cpp: fast answers on CPUs from GGUF files, with LoRA adapters swapped from request to request.

Prompts go in as token ids from the one renderer, never as text, and the ids that come back are decoded by the model's own tokenizer.
Files are exported when they are first needed and kept in the store. Scores are exact: each token of a continuation is forced once,
and llama.cpp reports its log-probability under the unchanged distribution.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.engine import (
    GENERATE,
    SCORE,
    STREAM,
    ConstraintKind,
    ContinuationScore,
    Delta,
    Engine,
    EngineInfo,
    Generation,
    Sampling,
    ScoreRequest,
    TokenLogprob,
    Vectors,
    require_parameters,
)
from luthier.core.errors import ContextLengthError, InputError, MismatchError, UnsupportedError
from luthier.core.message import Prompt
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.engines._concurrent import run_all
from luthier.engines._llamacpp_server import LlamaServer, Settings
from luthier.engines._llamacpp_tokens import Tokens
from luthier.engines._llamacpp_wire import Drawn, Reader, form_fields, request_body
from luthier.engines._scoring import ScoreRow, ask
from luthier.engines._tools import prompt_tools

if TYPE_CHECKING:
    from luthier.data.render import Renderer
    from luthier.engines._target import EngineTarget
    from luthier.store.database import Store

PARAMETERS = frozenset({
    "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "tools",
    *get_args(ConstraintKind),
})  # fmt: skip
_MOST_SLOTS, _SHARE_OF_MEMORY = 8, 0.2
_BYTES = {"f16": 2.0, "f32": 4.0, "q8_0": 34 / 32}


class Config(EntryConfig):
    """``type`` of the base's weights: F16, BF16, F32, Q8_0, Q4_0, Q4_1, or ``source`` for the GGUF that was pulled.

    ``context_length`` tokens (at most the model's) for each of ``parallel`` requests at once (0: 8, or as many as a fifth of the free
    memory holds the keys and values of). ``threads`` 0: one a physical core. ``cache_type``: what keys and values are kept in (f32 computes as
    exactly as torch does in fp32). ``gpu_layers`` -1: as many as llama.cpp finds room for. ``timeout_s`` bounds the wait for the next piece of
    an answer.

    A prompt that begins as an earlier one is read on from there. ``cache_mib`` keeps what was computed of prompts when another takes their
    place (not while adapters are served). ``draft`` names a stored base of the same vocabulary that guesses up to ``draft_tokens``
    ahead, ``lookup`` guesses what followed the same words before; the model checks every guess (Leviathan et al., 2023).
    """

    type: Literal["F16", "BF16", "F32", "Q8_0", "Q4_0", "Q4_1", "source"] = "F16"
    context_length: int = Field(default=4096, ge=16)
    parallel: int = Field(default=0, ge=0, le=64)
    threads: int = Field(default=0, ge=0)
    cache_type: Literal["f16", "f32", "q8_0"] = "f16"
    gpu_layers: int = Field(default=-1, ge=-1)
    timeout_s: float = Field(default=600.0, gt=0)
    cache_mib: int = Field(default=512, ge=0)
    draft: str = ""
    draft_tokens: int = Field(default=8, ge=1, le=64)
    lookup: bool = False


@dataclass(frozen=True)
class Files:
    """What llama.cpp loads for a model, and where its tokenizer is."""

    base: Path
    lora: Path | None
    tokenizer: Path


def open(model: EngineTarget, config: Config) -> Engine:  # noqa: A001 - the name of the catalogue's function
    """Open a decoder: a base, an adapter, or an export of either. What is missing is exported first.

    Raises UnsupportedError for encoders and for adapters that exist only in torch, MismatchError when the chat template is not the
    one that an adapter was trained with, DataError for a damaged GGUF.
    """
    from luthier.data.render import mismatch
    from luthier.models.load import load_renderer, usable_cores

    record, store = model.record, model.store
    if record is None or store is None:
        raise UnsupportedError(f"engine llamacpp answers as stored models; {model.name!r} is not one")
    if record.architecture != "decoder":
        raise UnsupportedError(
            f"engine llamacpp is for decoders; {record.name} is an {record.architecture}",
            hint="use engine torch for it",
        )
    files = find_files(store, record, config.type)
    renderer = load_renderer(files.tokenizer)
    trained = str(record.meta.get("template_digest") or "")
    if trained and record.kind != "base":
        mismatch(trained, renderer.digest, what=record.name)
    metadata = check(files)
    length = min(config.context_length, int(_of(metadata, "context_length")))
    settings = Settings(
        model=files.base,
        context_length=length,
        parallel=config.parallel or slots(metadata, length, config.cache_type),
        threads=config.threads or usable_cores(),
        cache_type=config.cache_type,
        gpu_layers=config.gpu_layers,
        timeout_s=config.timeout_s,
        cache_mib=config.cache_mib,
        draft=_draft(store, config, metadata),
        draft_tokens=config.draft_tokens,
        lookup=config.lookup,
    )
    server = model.shared.setdefault(("llamacpp", settings), LlamaServer(settings))
    info = EngineInfo(
        model=model.name,
        parameters=PARAMETERS,
        engine="llamacpp",
        capabilities=frozenset({GENERATE, STREAM, SCORE}),
        model_digest=record.digest,
        base_digest=(model.base or record).digest,
        template_digest=renderer.digest,
        context_length=settings.context_length,
        meta=(("weights", _weights(record, config.type)),),
    )
    return LlamaEngine(info, server, files.lora, renderer)


def find_files(store: Store, record: ModelRecord, type: str) -> Files:  # noqa: A002
    """The GGUF files for a stored decoder; exports what is not there yet."""
    from luthier.models.export import export, gguf_file
    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    if record.kind == "base":
        return Files(_base_file(store, record, type), None, path_of(store, record.digest))
    if record.kind == "export":
        if record.meta.get("holds") == "lora":
            base = find(store, record.base or "")
            return Files(_base_file(store, base, type), gguf_file(store, record), path_of(store, base.digest))
        whole = path_of(store, find(store, str(record.meta["target"])).digest)
        if not (whole / "config.json").is_file():  # merged: the tokenizer is the base's
            whole = path_of(store, find(store, record.base or "").digest)
        return Files(gguf_file(store, record), None, whole)
    if record.kind != "adapter":
        raise UnsupportedError(f"engine llamacpp cannot open {record.name}, an {record.kind}")
    made = export(record.name, type="F16" if type == "source" else type, store=store)
    return find_files(store, made, type)


def _base_file(store: Store, base: ModelRecord, type: str) -> Path:  # noqa: A002
    from luthier.models.export import export, gguf_file
    from luthier.models.pull import SOURCE_GGUF
    from luthier.store.artifacts import path_of

    if type == "source":
        path = path_of(store, base.digest) / SOURCE_GGUF
        if not path.is_file():
            raise InputError(
                f"type 'source' needs a base that was pulled as GGUF; {base.name} was not", hint="use type F16"
            )
        return path
    return gguf_file(store, export(base.name, type=type, store=store))


def check(files: Files) -> dict[str, Any]:
    """Check both files before llama.cpp sees them; returns what the base's says of itself."""
    from luthier.models.gguf import check_gguf

    metadata = check_gguf(files.base).metadata
    if files.lora is not None:
        check_gguf(files.lora, holds="adapter")
    return dict(metadata)


def _of(metadata: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """A value that GGUF keeps under the architecture's name."""
    return metadata.get(f"{metadata['general.architecture']}.{key}", default)


def slots(metadata: Mapping[str, Any], context_length: int, cache_type: str) -> int:
    """How many requests at once: 8, or as many as a fifth of the free memory holds the keys and values of, at least 1."""
    import psutil

    layers, heads = int(_of(metadata, "block_count")), _of(metadata, "attention.head_count")
    shared = _of(metadata, "attention.head_count_kv", heads)
    width = int(_of(metadata, "embedding_length")) // int(max(heads) if isinstance(heads, list) else heads)
    rows = sum(shared) if isinstance(shared, list) else layers * int(shared)
    sizes = int(_of(metadata, "attention.key_length", width)) + int(_of(metadata, "attention.value_length", width))
    one = context_length * rows * sizes * _BYTES[cache_type]
    return max(1, min(_MOST_SLOTS, int(psutil.virtual_memory().available * _SHARE_OF_MEMORY / one)))


def _draft(store: Store, config: Config, metadata: Mapping[str, Any]) -> Path | None:
    """The GGUF of the draft model. Raises MismatchError when its vocabulary is another one."""
    from luthier.models.gguf import check_gguf
    from luthier.store.models import find

    if not config.draft:
        return None
    path = find_files(store, find(store, config.draft), config.type).base
    theirs = check_gguf(path).metadata
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.tokens"):
        if theirs.get(key) != metadata.get(key):
            raise MismatchError(f"draft: {config.draft} has another vocabulary, so it cannot guess this model's tokens")
    return path


def _weights(record: ModelRecord, type: str) -> str:  # noqa: A002
    """The type of the weights that answer: an exported model's own, else the configured one of the base."""
    return str(record.meta["quantization"]) if record.meta.get("holds") == "model" else type


class LlamaEngine:
    """One model on a ``LlamaServer``, which other engines may share. Safe from several threads."""

    def __init__(self, info: EngineInfo, server: LlamaServer, lora: Path | None, renderer: Renderer) -> None:
        self._info, self._server, self._lora, self._renderer = info, server, lora, renderer
        self._tokens = Tokens(server, lora, renderer)
        self._vocabulary = len(renderer.tokenizer)
        server.join(lora)
        self._open = True

    @property
    def info(self) -> EngineInfo:
        """What answers."""
        return self._info

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt, as many at once as the server has places. Log-probabilities cost time: they are there when
        ``sampling.logprobs`` asks for them.

        Raises ContextLengthError for a prompt that fills the context, UnsupportedError for parameters that cannot be combined,
        EngineError when llama.cpp fails.
        """

        def one(prompt: Prompt) -> Generation:
            made = self._whole(prompt, sampling, None)
            assert made is not None  # only an event can stop it
            return made

        workers = self._server.settings.parallel
        return run_all(one, prompts, workers=workers, stage="generate", progress=progress)

    def answer(self, prompt: Prompt, sampling: Sampling, stopped: threading.Event) -> Generation | None:
        """One answer; None when ``stopped`` was set before it was done, which ends it in llama.cpp too. Raises as ``generate``."""
        return self._whole(prompt, sampling, stopped)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The answer as it grows; stopping the iteration stops the model. Raises as ``generate``, before the first piece.

        llama.cpp does not report tokens that are only part of a character: for such an answer ``token_ids`` is empty, unless
        log-probabilities are asked for.
        """
        ids = self._prompt_ids(prompt, sampling)
        reader = self._reader(ids, sampling)
        body = self._body(ids, sampling)
        if sampling.presence_penalty:
            return reader.grow(self._steps(ids, sampling, reader))
        if sampling.logprobs is not None:
            body["stop"] = []  # so that every piece of text comes with its tokens
        return self._pieces(reader, body)

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Exact log-likelihoods, one forward step a token; beginnings that continuations share are computed once."""
        asked = ask(requests, self._renderer, self._info, window=self._info.context_length - 1)
        workers = self._server.settings.parallel
        return asked.scores(run_all(self._score, asked.rows, workers=workers, stage="score", progress=progress))

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Not offered: a server that embeds cannot generate."""
        raise UnsupportedError(f"{self._info.model} on engine llamacpp cannot embed", hint="use engine torch for it")

    def healthy(self, timeout_s: float) -> None:
        """Raises EngineError when the server does not say that it is well; one that ended is started again."""
        self._server.healthy(timeout_s)

    def close(self) -> None:
        """Leave the server; the last engine on it stops it."""
        if self._open:
            self._open = False
            self._server.leave(self._lora)

    # ---- requests

    def _prompt_ids(self, prompt: Prompt, sampling: Sampling) -> list[int]:
        require_parameters(self._info, [prompt], sampling)
        for token, _ in sampling.logit_bias:
            if not 0 <= token < self._vocabulary:
                raise InputError(
                    f"logit_bias names token {token}; {self._info.model} has tokens 0 to {self._vocabulary - 1}"
                )
        ids = self._renderer.prompt_ids(prompt, prompt_tools(sampling))
        if len(ids) + 1 > self._info.context_length:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens; {self._info.model} takes at most "
                f"{self._info.context_length - 1} here",
                hint="shorten it, or raise the engine option context_length",
            )
        return ids

    def _reader(self, ids: Sequence[int], sampling: Sampling) -> Reader:
        def weigh(before: Sequence[int], token: int) -> TokenLogprob:
            return self._tokens.weigh(before, token, sampling.logprobs or 0)

        return Reader(self._renderer, ids, sampling, weigh, lambda: self._tokens.vocabulary)

    def _body(self, ids: Sequence[int], sampling: Sampling) -> dict[str, Any]:
        body = request_body(ids, sampling, self._info.context_length)
        form = form_fields(self._renderer, sampling)
        bias = [*body.get("logit_bias", ()), *form.get("logit_bias", ())]
        return body | form | ({"logit_bias": bias} if bias else {})

    def _steps(self, ids: Sequence[int], sampling: Sampling, reader: Reader) -> Iterator[Drawn]:
        return self._tokens.steps(ids, sampling, self._info.context_length, reader.note_cached)

    def _whole(self, prompt: Prompt, sampling: Sampling, stopped: threading.Event | None) -> Generation | None:
        ids = self._prompt_ids(prompt, sampling)
        reader = self._reader(ids, sampling)
        body = self._body(ids, sampling)
        if not sampling.presence_penalty:
            if stopped is None:
                return reader.whole(self._server.post("/completion", body, self._lora))
            answer = self._server.post_unless(stopped, "/completion", body, self._lora)
            return None if answer is None else reader.whole(answer)
        last = None
        for delta in reader.grow(self._steps(ids, sampling, reader)):
            last = delta.generation
            if stopped is not None and stopped.is_set():
                break
        return last

    def _pieces(self, reader: Reader, body: dict[str, Any]) -> Iterator[Delta]:
        events = self._server.events("/completion", body, self._lora)
        try:
            yield from reader.stream(events)
        finally:
            events.close()

    def _score(self, row: ScoreRow) -> tuple[ContinuationScore, ...]:
        known: dict[tuple[int, ...], tuple[float, bool]] = {}
        for ids in map(tuple, row.continuations):
            for place in range(len(ids)):
                if ids[: place + 1] not in known:
                    known[ids[: place + 1]] = self._tokens.score([*row.prompt, *ids[:place]], ids[place])
        out = []
        for ids in map(tuple, row.continuations):
            said = [known[ids[: place + 1]] for place in range(len(ids))]
            out.append(ContinuationScore(sum(value for value, _ in said), len(ids), all(best for _, best in said)))
        return tuple(out)
