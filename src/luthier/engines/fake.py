"""Deterministic answers without a model, for tests and dry runs.

A token is a word between white space. Answers come from ``answers``, else from ``labels``, else from a hash of the prompt; scores
come from a hash too, and a continuation that occurs in the last user turn is likelier and counts as what would have been said. Equal
requests get equal answers, in every process. Every parameter but ``beams`` is honoured, in a made-up way that follows its rule: a word
whose ``logit_bias`` is -100 is never said, a constrained answer is valid, a tool is called when ``tool_calls`` or ``tool_choice`` say
so, an answer that was drawn says how many images it saw. It can also fail as engines do: at once, in the middle, or in silence.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.digest import digest_json, digest_text
from luthier.core.engine import (
    EMBED,
    GENERATE,
    PARAMETERS,
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
from luthier.core.errors import ContextLengthError, EngineError
from luthier.core.message import Prompt, ToolCall, last_user_text
from luthier.core.run import Progress, no_progress
from luthier.engines._fake_forms import arguments_for, in_form
from luthier.engines._fake_words import banned, draw_words, hashed, pieces, render, seed_of, token_logprob, word_id

if TYPE_CHECKING:
    from luthier.engines._target import EngineTarget

TEMPLATE_DIGEST = digest_text("fake: one 'role: content' line a turn")
_NOT_ANSWERS = {"latency_s", "hang_s", "fail", "break_after"}


class Call(EntryConfig):
    """A tool call; ``arguments`` as text go out as they are, valid or not."""

    name: str
    arguments: Mapping[str, Any] | str = Field(default_factory=dict)


class Failure(EntryConfig):
    """An EngineError; only the first ``times`` requests fail (None: all of them)."""

    message: str = "the fake engine failed, as it was told to"
    retryable: bool = True
    retry_after_s: float | None = None
    times: int | None = Field(default=None, ge=1)


class Config(EntryConfig):
    """``answers`` maps a piece of the last user turn to the answer (the longest piece that occurs wins); of several, the seed chooses
    when there is a temperature, else the first is given. ``labels`` are the only other answers, when given. ``tool_calls`` maps such a
    piece to what is called, where these tools are offered and the last turn is not a tool's. ``latency_s`` is spent on each answer.
    ``width`` is the length of embeddings.

    ``fail`` maps such a piece to an error ("" is in every turn: the engine is down, and says so when asked for its health).
    ``break_after``: an answer of more words fails after so many. ``hang_s`` is spent in silence before each answer.
    """

    labels: tuple[str, ...] = ()
    answers: Mapping[str, str | tuple[str, ...]] = Field(default_factory=dict)
    tool_calls: Mapping[str, Call | tuple[Call, ...]] = Field(default_factory=dict)
    latency_s: float = Field(default=0.0, ge=0.0)
    context_length: int = Field(default=8192, ge=1)
    width: int = Field(default=64, ge=2)
    fail: Mapping[str, str | Failure] = Field(default_factory=dict)
    break_after: int | None = Field(default=None, ge=0)
    hang_s: float = Field(default=0.0, ge=0.0)


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
        self._lock = threading.Lock()
        self._failed: dict[str, int] = {}
        self._info = EngineInfo(
            model=name,
            parameters=frozenset(PARAMETERS) - {"beams"},
            engine="fake",
            capabilities=frozenset({GENERATE, STREAM, SCORE, EMBED}),
            model_digest=digest_json([name, config.model_dump(exclude=_NOT_ANSWERS)]),
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
        """One answer a prompt. Raises ContextLengthError for a prompt that is too long, EngineError as it is told to."""
        answers = []
        for done, prompt in enumerate(prompts, 1):
            start = time.perf_counter()
            answer = self._answer(prompt, sampling)
            _spend(self._config.hang_s + self._config.latency_s)
            answers.append(self._whole(answer, start))
            progress("generate", done, len(prompts))
        return answers

    def answer(self, prompt: Prompt, sampling: Sampling, stopped: threading.Event) -> Generation | None:
        """One answer as ``generate`` gives it; None when ``stopped`` was set before its time was spent."""
        start = time.perf_counter()
        made = self._answer(prompt, sampling)
        wait = self._config.hang_s + self._config.latency_s
        return None if wait > 0 and stopped.wait(wait) else self._whole(made, start)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The answer word by word; the pieces joined are the text."""
        start = time.perf_counter()
        answer = self._answer(prompt, sampling)
        return self._deltas(answer, start)

    def healthy(self, timeout_s: float) -> None:
        """Raises EngineError when it was told to fail always, or to be silent for longer than ``timeout_s``."""
        always = self._config.fail.get("")
        if always is not None:
            raise _error(always)
        _spend(min(self._config.hang_s, timeout_s))
        if self._config.hang_s > timeout_s:
            raise EngineError(f"{self._info.model} said nothing for {timeout_s:g} s", retryable=True)

    def _whole(self, answer: Generation, start: float) -> Generation:
        self._check_unbroken(len(pieces(answer.text)))
        return _timed(answer, start, time.perf_counter())

    def _check_unbroken(self, words: int) -> None:
        if self._config.break_after is not None and words > self._config.break_after:
            raise EngineError(f"{self._info.model} broke off in the middle of an answer", retryable=True)

    def _deltas(self, answer: Generation, start: float) -> Iterator[Delta]:
        words = pieces(answer.text)
        first: float | None = None
        _spend(self._config.hang_s)
        for place, piece in enumerate(words):
            self._check_unbroken(place + 1)
            _spend(self._config.latency_s / len(words))
            first = time.perf_counter() if first is None else first
            yield Delta(piece, tokens=answer.tokens[place : place + 1])
        for call in answer.tool_calls:
            first = time.perf_counter() if first is None else first
            yield Delta("", tool_calls=(call,))
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
                bits = hashed("embed", word)
                vectors[row, bits % self._config.width] += 1.0 if bits >> 60 & 1 else -1.0
            if not vectors[row].any():  # words that cancel out
                vectors[row, 0] = 1.0
            vectors[row] /= np.linalg.norm(vectors[row])
            progress("embed", row + 1, len(texts))
        return vectors

    def close(self) -> None:
        """Nothing to free."""

    def count_tokens(self, prompt: Prompt) -> int:
        """How many tokens a prompt has."""
        return len(render(prompt).split())

    def _prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        ids = tuple(word_id(word) for word in render(prompt).split())
        if len(ids) > self._config.context_length:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens; {self._info.model} takes at most {self._config.context_length}"
            )
        return ids

    def _answer(self, prompt: Prompt, sampling: Sampling) -> Generation:
        prompt_ids = self._prompt_ids(prompt)
        self._fail(last_user_text(prompt))
        calls = self._calls(prompt, sampling)
        text, finish = ("", "tool_calls") if calls else (self._text(prompt, sampling), "stop")
        said = pieces(text + "".join(f" {call.name} {call.arguments}" for call in calls))
        if len(said) > sampling.max_new_tokens:
            said, finish, calls = said[: sampling.max_new_tokens], "length", ()
            text = "".join(said) if text else ""
        cuts = [at for at in (text.find(stop) for stop in sampling.stop if stop) if at >= 0]
        if cuts:
            text, finish = text[: min(cuts)], "stop"
        words = pieces(text)
        ids = tuple(word_id(word.strip()) for word in words)
        return Generation(
            text=text,
            token_ids=ids,
            prompt_token_ids=prompt_ids,
            finish_reason=finish,
            logprob=-0.5 * len(ids),
            prompt_tokens=len(prompt_ids),
            completion_tokens=len(ids) if text else len(said),
            tokens=() if sampling.logprobs is None else tuple(token_logprob(word, sampling.logprobs) for word in words),
            tool_calls=calls,
        )

    def _fail(self, question: str) -> None:
        for piece, failure in self._config.fail.items():
            if piece not in question:
                continue
            if isinstance(failure, Failure) and failure.times is not None:
                with self._lock:
                    self._failed[piece] = self._failed.get(piece, 0) + 1
                    if self._failed[piece] > failure.times:
                        continue
            raise _error(failure)

    def _calls(self, prompt: Prompt, sampling: Sampling) -> tuple[ToolCall, ...]:
        offered = {tool.name: tool for tool in sampling.tools}
        if sampling.tool_choice in offered:
            offered = {sampling.tool_choice: offered[sampling.tool_choice]}
        forced = sampling.tool_choice not in ("none", "auto")
        heard = not isinstance(prompt, str) and prompt[-1].role == "tool"
        if not offered or sampling.tool_choice == "none" or (heard and not forced):
            return ()
        question = last_user_text(prompt)
        known = [piece for piece in self._config.tool_calls if piece in question]
        told = self._config.tool_calls[max(known, key=len)] if known else ()
        wanted = [call for call in ((told,) if isinstance(told, Call) else told) if call.name in offered]
        if forced and not wanted:
            tool = next(iter(offered.values()))
            wanted = [Call(name=tool.name, arguments=arguments_for(tool.parameters))]
        wanted = wanted if sampling.parallel_tool_calls else wanted[:1]
        return tuple(
            ToolCall(
                call.name,
                call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments, ensure_ascii=False),
                f"call_{hashed(render(prompt), call.name, str(number)):016x}",
            )
            for number, call in enumerate(wanted)
        )

    def _text(self, prompt: Prompt, sampling: Sampling) -> str:
        seed = seed_of(prompt, sampling)
        text = self._free_text(prompt, sampling, seed)
        return text if sampling.constraint is None else in_form(sampling.constraint, text, seed)

    def _free_text(self, prompt: Prompt, sampling: Sampling, seed: int) -> str:
        question = last_user_text(prompt)
        known = [piece for piece in self._config.answers if piece in question]
        if known:
            told = self._config.answers[max(known, key=len)]
            if not isinstance(told, str):
                told = told[(sampling.seed or 0) % len(told)] if sampling.temperature > 0 else told[0]
            return "".join(word for word in pieces(told.rstrip()) if not banned(word, sampling))
        labels = [label for label in self._config.labels if not banned(label, sampling)]
        if labels:
            if sampling.temperature > 0:
                return labels[seed % len(labels)]
            return max(labels, key=lambda label: self._score(prompt, label).logprob)
        images = 0 if isinstance(prompt, str) else sum(len(turn.images) for turn in prompt)
        seen = [f"{images} image{'s' if images > 1 else ''}:"] if images else []
        return " ".join([*seen, *draw_words(seed, sampling)])

    def _score(self, prompt: Prompt, text: str) -> ContinuationScore:
        tokens = len(text.split()) + (0 if isinstance(prompt, str) else 1)
        needle = text.lower().replace("_", " ").strip()
        found = last_user_text(prompt).lower().count(needle) if needle else 0
        unlikely = 1.0 + 4.0 * (hashed(render(prompt), text) / 2**64)
        return ContinuationScore(-unlikely * max(tokens, 1) / (1 + 8 * found), tokens, greedy=found > 0)


def _error(failure: str | Failure) -> EngineError:
    told = Failure(message=failure) if isinstance(failure, str) else failure
    return EngineError(told.message, retryable=told.retryable, retry_after_s=told.retry_after_s)


def _spend(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)


def _timed(answer: Generation, start: float, first: float) -> Generation:
    return replace(answer, first_token_s=first - start, latency_s=time.perf_counter() - start)
