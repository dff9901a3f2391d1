"""Deterministic answers without a model, for tests and dry runs.

A token is a word between white space. Answers come from ``answers``, else from ``labels``, else from a hash of the prompt; scores
come from a hash too, and a continuation that occurs in the last user turn is likelier and counts as what would have been said. Equal
requests get equal answers, in every process.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.digest import digest_json, digest_text
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
from luthier.core.errors import InputError
from luthier.core.message import Prompt, last_user_text
from luthier.core.run import Progress, no_progress

if TYPE_CHECKING:
    from luthier.engines._target import EngineTarget

_WORDS = (
    "the a this that it we they can will may should never often always please check open send wait return order parcel "
    "lesson account payment answer question number first second today tomorrow again before after because and or with"
)
WORDS = tuple(_WORDS.split())
TEMPLATE_DIGEST = digest_text("fake: one 'role: content' line a turn")


class Config(EntryConfig):
    """``answers`` maps a piece of the last user turn to the answer (the longest piece that occurs wins); of several, the seed chooses
    when there is a temperature, else the first is given. ``labels`` are the only other answers, when given. ``latency_s`` is spent on
    each answer. ``width`` is the length of embeddings."""

    labels: tuple[str, ...] = ()
    answers: Mapping[str, str | tuple[str, ...]] = Field(default_factory=dict)
    latency_s: float = Field(default=0.0, ge=0.0)
    context_length: int = Field(default=8192, ge=1)
    width: int = Field(default=64, ge=2)


def open(model: EngineTarget, config: Config) -> Engine:  # noqa: A001 - the name of the catalogue's function
    """A fake engine; ``fake:billing,refund`` as the model's name sets the labels when ``config`` has none."""
    if not config.labels and model.name.startswith("fake:"):
        named = tuple(label.strip() for label in model.name.removeprefix("fake:").split(",") if label.strip())
        config = config.model_copy(update={"labels": named})
    return FakeEngine(model.name, config)


class FakeEngine:
    """See the module."""

    def __init__(self, name: str, config: Config) -> None:
        self._config = config
        self._info = EngineInfo(
            model=name,
            parameters=frozenset({"top_k", "repetition_penalty"}),
            engine="fake",
            capabilities=frozenset({GENERATE, STREAM, SCORE, EMBED}),
            model_digest=digest_json([name, config.model_dump(exclude={"latency_s"})]),
            base_digest=digest_text("fake"),
            template_digest=TEMPLATE_DIGEST,
            context_length=config.context_length,
            labels=() if config.answers else config.labels,
        )

    @property
    def info(self) -> EngineInfo:
        """What answers."""
        return self._info

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt. Raises InputError when a prompt is longer than the context."""
        answers = []
        for done, prompt in enumerate(prompts, 1):
            start = time.perf_counter()
            answer = self._answer(prompt, sampling)
            _spend(self._config.latency_s)
            answers.append(_timed(answer, start, time.perf_counter()))
            progress("generate", done, len(prompts))
        return answers

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The answer word by word; the pieces joined are the text."""
        start = time.perf_counter()
        answer = self._answer(prompt, sampling)
        return self._pieces(answer, start)

    def _pieces(self, answer: Generation, start: float) -> Iterator[Delta]:
        pieces = _words_with_space(answer.text)
        pieces.append(answer.text[len("".join(pieces)) :])
        first: float | None = None
        for piece in filter(None, pieces):
            _spend(self._config.latency_s / len(pieces))
            first = time.perf_counter() if first is None else first
            yield Delta(piece)
        yield Delta("", _timed(answer, start, first or time.perf_counter()))

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Hashed log-likelihoods; a continuation that occurs in the last user turn is likelier."""
        scores = []
        for done, request in enumerate(requests, 1):
            self._prompt_ids(request.prompt)
            _spend(self._config.latency_s)
            scores.append(tuple(self._score(request.prompt, text) for text in request.continuations))
            progress("score", done, len(requests))
        return scores

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Hashed bags of words, shape (texts, width), unit length."""
        vectors = np.zeros((len(texts), self._config.width), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split() or [""]:
                bits = _hash("embed", word)
                vectors[row, bits % self._config.width] += 1.0 if bits >> 60 & 1 else -1.0
            if not vectors[row].any():  # words that cancel out
                vectors[row, 0] = 1.0
            vectors[row] /= np.linalg.norm(vectors[row])
            progress("embed", row + 1, len(texts))
        return vectors

    def close(self) -> None:
        """Nothing to free."""

    def _prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        ids = tuple(_token(word) for word in _render(prompt).split())
        if len(ids) > self._config.context_length:
            raise InputError(
                f"the prompt has {len(ids)} tokens; {self._info.model} takes at most {self._config.context_length}"
            )
        return ids

    def _answer(self, prompt: Prompt, sampling: Sampling) -> Generation:
        prompt_ids = self._prompt_ids(prompt)
        text, finish = self._text(prompt, sampling), "stop"
        words = _words_with_space(text)
        if len(words) > sampling.max_new_tokens:
            words, finish = words[: sampling.max_new_tokens], "length"
        text = "".join(words)
        cuts = [at for at in (text.find(stop) for stop in sampling.stop if stop) if at >= 0]
        if cuts:
            text, finish = text[: min(cuts)], "stop"
        ids = tuple(_token(word) for word in text.split())
        return Generation(
            text=text,
            token_ids=ids,
            prompt_token_ids=prompt_ids,
            finish_reason=finish,
            logprob=-0.5 * len(ids),
            prompt_tokens=len(prompt_ids),
            completion_tokens=len(ids),
        )

    def _text(self, prompt: Prompt, sampling: Sampling) -> str:
        question = last_user_text(prompt)
        known = [piece for piece in self._config.answers if piece in question]
        if known:
            told = self._config.answers[max(known, key=len)]
            if isinstance(told, str):
                return told
            return told[(sampling.seed or 0) % len(told)] if sampling.temperature > 0 else told[0]
        draw = "greedy"
        if sampling.temperature > 0:
            draw = repr((sampling.seed or 0, sampling.temperature, sampling.top_p, sampling.top_k))
        if sampling.repetition_penalty != 1.0:
            draw += repr(sampling.repetition_penalty)
        seed = _hash(_render(prompt), draw)
        if self._config.labels:
            if sampling.temperature > 0:
                return self._config.labels[seed % len(self._config.labels)]
            return max(self._config.labels, key=lambda label: self._score(prompt, label).logprob)
        return " ".join(WORDS[_hash(str(seed), str(i)) % len(WORDS)] for i in range(3 + seed % 10))

    def _score(self, prompt: Prompt, text: str) -> ContinuationScore:
        tokens = len(text.split()) + (0 if isinstance(prompt, str) else 1)
        needle = text.lower().replace("_", " ").strip()
        found = last_user_text(prompt).lower().count(needle) if needle else 0
        unlikely = 1.0 + 4.0 * (_hash(_render(prompt), text) / 2**64)
        return ContinuationScore(-unlikely * max(tokens, 1) / (1 + 8 * found), tokens, greedy=found > 0)


def _render(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{m.role}: {m.content}" for m in prompt)


def _words_with_space(text: str) -> list[str]:
    """Words, each with the white space before it; joined they are the text without trailing white space."""
    words, at = [], 0
    for word in text.split():
        end = text.index(word, at) + len(word)
        words.append(text[at:end])
        at = end
    return words


def _token(word: str) -> int:
    return _hash("token", word) >> 33


def _hash(*parts: str) -> int:
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _spend(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)


def _timed(answer: Generation, start: float, first: float) -> Generation:
    return replace(answer, first_token_s=first - start, latency_s=time.perf_counter() - start)
