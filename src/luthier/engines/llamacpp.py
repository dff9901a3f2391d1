"""llama.cpp: fast answers on CPUs from GGUF files, with LoRA adapters swapped from request to request.

Prompts go in as token ids from the one renderer, never as text, and the ids that come back are decoded by the model's own tokenizer.
Files are exported when they are first needed and kept in the store. Scores are exact: each token of a continuation is forced once,
and llama.cpp reports its log-probability under the unchanged distribution.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.engine import (
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
from luthier.core.errors import ContextLengthError, InputError, UnsupportedError
from luthier.core.message import Prompt
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.engines._concurrent import run_all
from luthier.engines._llamacpp_server import LlamaServer, Settings
from luthier.engines._scoring import ScoreRow, ask
from luthier.engines._text import AnswerText

if TYPE_CHECKING:
    from luthier.data.render import Renderer
    from luthier.engines._target import EngineTarget
    from luthier.store.database import Store

_FORCE = 1e5  # a logit above all others; finite, because llama.cpp adds it


class Config(EntryConfig):
    """``type`` of the base's weights: F16, BF16, F32, Q8_0, Q4_0, Q4_1, or ``source`` for the GGUF that was pulled.

    ``context_length`` tokens (at most the model's) for each of ``parallel`` requests at once. ``threads`` 0: one a physical core.
    ``cache_type``: what keys and values are kept in (f32 computes as exactly as torch does in fp32). ``gpu_layers`` -1: as many as llama.cpp finds room for. ``timeout_s`` bounds the
    wait for the next piece of an answer.
    """

    type: Literal["F16", "BF16", "F32", "Q8_0", "Q4_0", "Q4_1", "source"] = "F16"
    context_length: int = Field(default=4096, ge=16)
    parallel: int = Field(default=4, ge=1, le=64)
    threads: int = Field(default=0, ge=0)
    cache_type: Literal["f16", "f32", "q8_0"] = "f16"
    gpu_layers: int = Field(default=-1, ge=-1)
    timeout_s: float = Field(default=600.0, gt=0)


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
    trained_length = check(files)
    settings = Settings(
        model=files.base,
        context_length=min(config.context_length, trained_length),
        parallel=config.parallel,
        threads=config.threads or usable_cores(),
        cache_type=config.cache_type,
        gpu_layers=config.gpu_layers,
        timeout_s=config.timeout_s,
    )
    server = model.shared.setdefault(("llamacpp", settings), LlamaServer(settings))
    info = EngineInfo(
        model=model.name,
        parameters=frozenset({"top_k", "repetition_penalty"}),
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


def check(files: Files) -> int:
    """Check both files before llama.cpp sees them; returns the context length that the model was made for."""
    from luthier.models.gguf import check_gguf

    metadata = check_gguf(files.base).metadata
    if files.lora is not None:
        check_gguf(files.lora, holds="adapter")
    return int(metadata[f"{metadata['general.architecture']}.context_length"])


def _weights(record: ModelRecord, type: str) -> str:  # noqa: A002
    """The type of the weights that answer: an exported model's own, else the configured one of the base."""
    return str(record.meta["quantization"]) if record.meta.get("holds") == "model" else type


class LlamaEngine:
    """One model on a ``LlamaServer``, which other engines may share. Safe from several threads."""

    def __init__(self, info: EngineInfo, server: LlamaServer, lora: Path | None, renderer: Renderer) -> None:
        self._info, self._server, self._renderer = info, server, renderer
        self._lora = server.join(lora)
        self._open = True

    @property
    def info(self) -> EngineInfo:
        """What answers."""
        return self._info

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt, as many at once as the server has places.

        Raises InputError for a prompt that fills the context, EngineError when llama.cpp fails.
        """
        return run_all(
            lambda prompt: self._generate(prompt, sampling),
            prompts,
            workers=self._server.settings.parallel,
            stage="generate",
            progress=progress,
        )

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The answer as it grows; stopping the iteration stops the model.

        llama.cpp does not report tokens that are only part of a character: for such an answer ``token_ids`` is empty.
        """
        start = time.perf_counter()
        body = self._body(prompt, sampling)
        return self._pieces(body, sampling, start)

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

    def close(self) -> None:
        """Leave the server; the last engine on it stops it."""
        if self._open:
            self._open = False
            self._server.leave()

    # ---- requests

    def _prompt_ids(self, prompt: Prompt, room: int = 1) -> list[int]:
        ids = self._renderer.prompt_ids(prompt)
        if len(ids) + room > self._info.context_length:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens; {self._info.model} takes at most "
                f"{self._info.context_length - room} here",
                hint="shorten it, or raise the engine option context_length",
            )
        return ids

    def _body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        ids = self._prompt_ids(prompt)
        return {
            "prompt": ids,
            "n_predict": min(sampling.max_new_tokens, self._info.context_length - len(ids)),
            "samplers": ["penalties", "temperature", "top_k", "top_p"],  # transformers' order
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self._info.context_length,
            "seed": secrets.randbits(31) if sampling.seed is None else sampling.seed % 2**31,
            "stop": list(sampling.stop),
            "n_probs": 1,
            "return_tokens": True,
            "cache_prompt": True,
            "lora": self._server.lora(self._lora),
        }

    def _generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        start = time.perf_counter()
        body = self._body(prompt, sampling)
        answer = self._server.post("/completion", body)
        ids, ended = self._answer_ids(answer["tokens"], answer["stop_type"])
        grown = AnswerText(self._renderer.decode, sampling.stop)
        for token in ids:
            grown.push(token)
        grown.finish()
        kept = grown.ids
        spent = time.perf_counter() - start
        timings = answer.get("timings", {})
        return Generation(
            text=grown.text,
            token_ids=kept,
            prompt_token_ids=tuple(body["prompt"]),
            finish_reason="stop" if ended or grown.stopped else "length",
            logprob=_logprob(answer.get("completion_probabilities") or [], kept),
            first_token_s=max(0.0, spent - float(timings.get("predicted_ms", 0.0)) / 1000),
            latency_s=spent,
            prompt_tokens=len(body["prompt"]),
            completion_tokens=len(kept),
        )

    def _pieces(self, body: dict[str, Any], sampling: Sampling, start: float) -> Iterator[Delta]:
        text, tokens, first, last = "", list[int](), 0.0, dict[str, Any]()
        probabilities: list[dict[str, Any]] = []
        for event in self._server.events("/completion", body):
            first = first or time.perf_counter() - start
            tokens += event.get("tokens", [])
            probabilities += event.get("completion_probabilities", [])
            if event.get("content"):
                text += event["content"]
                yield Delta(event["content"])
            last = event
        count = int(last.get("tokens_predicted", 0))
        whole = tokens if len(tokens) == count else []
        ids, ended = self._answer_ids(whole, last.get("stop_type", ""))
        if sampling.stop and last.get("stop_type") == "word":
            grown = AnswerText(self._renderer.decode, sampling.stop)
            for token in ids:
                grown.push(token)
            ids, ended = list(grown.ids), True
        yield Delta(
            "",
            Generation(
                text=text,
                token_ids=tuple(ids),
                prompt_token_ids=tuple(body["prompt"]),
                finish_reason="stop" if ended else "length",
                logprob=_logprob(probabilities, tuple(ids)) if whole else None,
                first_token_s=first,
                latency_s=time.perf_counter() - start,
                prompt_tokens=len(body["prompt"]),
                completion_tokens=len(ids) if whole else count - (last.get("stop_type") == "eos"),
            ),
        )

    def _answer_ids(self, tokens: list[int], stop_type: str) -> tuple[list[int], bool]:
        """The tokens before the one that ends the answer, and whether the model ended it."""
        for place, token in enumerate(tokens):
            if token in self._renderer.stop_ids:
                return tokens[:place], True
        if stop_type == "eos":
            return tokens[:-1], True
        return tokens, False

    def _score(self, row: ScoreRow) -> tuple[ContinuationScore, ...]:
        lora, known = self._server.lora(self._lora), dict[tuple[int, ...], tuple[float, bool]]()
        for ids in map(tuple, row.continuations):
            for place in range(len(ids)):
                if ids[: place + 1] not in known:
                    known[ids[: place + 1]] = self._token_score([*row.prompt, *ids[:place]], ids[place], lora)
        out = []
        for ids in map(tuple, row.continuations):
            said = [known[ids[: place + 1]] for place in range(len(ids))]
            out.append(ContinuationScore(sum(value for value, _ in said), len(ids), all(best for _, best in said)))
        return tuple(out)

    def _token_score(self, before: list[int], token: int, lora: list[dict[str, Any]]) -> tuple[float, bool]:
        """The log-probability of ``token`` after ``before``, and whether it is the likeliest: forced to be drawn, reported as it was
        before any sampling."""
        body: dict[str, Any] = {
            "prompt": before,
            "n_predict": 1,
            "temperature": 0.0,
            "samplers": ["temperature"],
            "logit_bias": [[token, _FORCE]],
            "n_probs": 1,
            "cache_prompt": True,
            "lora": lora,
        }
        said = self._server.post("/completion", body).get("completion_probabilities")
        if said:
            return float(said[0]["logprob"]), said[0]["top_logprobs"][0]["id"] == token
        # a token that is only part of a character is not reported: draw another one and look for this one among all
        body |= {"n_probs": len(self._renderer.tokenizer), "logit_bias": [[self._whole_token(), _FORCE]]}
        said = self._server.post("/completion", body)["completion_probabilities"]
        listed = said[0]["top_logprobs"]
        return next(float(each["logprob"]) for each in listed if each["id"] == token), listed[0]["id"] == token

    def _whole_token(self) -> int:
        """Any token that is whole characters."""
        return self._renderer.continuation_ids("a", ends_turn=False)[0]


def _logprob(probabilities: list[dict[str, Any]], ids: tuple[int, ...]) -> float | None:
    """Sum over ``ids``; None when llama.cpp left some out."""
    said = probabilities[: len(ids)]
    if [each.get("id") for each in said] != list(ids):
        return None
    return float(sum(each["logprob"] for each in said))
