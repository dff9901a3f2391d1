"""The engine contract: text in, tokens out.

Everything that answers satisfies ``Engine``: a local model, an adapter, a remote endpoint, a prompting strategy around any of
them. Evaluation, the tournament and the gateway know nothing else. Calls are safe from several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from luthier.core.document import Citation, Hit
from luthier.core.errors import EngineError, InputError, UnsupportedError
from luthier.core.message import Prompt, Tool, ToolCall
from luthier.core.run import Progress, no_progress

Vectors = npt.NDArray[np.float32]

GENERATE, STREAM, SCORE, EMBED, RERANK = "generate", "stream", "score", "embed", "rerank"

ConstraintKind = Literal["json", "json_schema", "regex", "choice", "grammar"]
MOST_LOGPROBS = 20

PARAMETERS = (
    "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "beams",
    "tools", "images", *get_args(ConstraintKind),
)  # fmt: skip
"""What only some engines honour (``EngineInfo.parameters``); every engine takes the rest of ``Sampling``."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the text of an answer must be.

    ``json``: any JSON object (``value`` empty); ``json_schema``: ``value`` is the schema as JSON text; ``regex``: a pattern that the whole
    text matches; ``choice``: a JSON list of the allowed texts; ``grammar``: a grammar in GBNF, whose start rule is ``root``.
    """

    kind: ConstraintKind
    value: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConstraintKind):
            raise InputError(f"constraint must be one of {', '.join(get_args(ConstraintKind))}; got {self.kind!r}")
        if not self.value and self.kind != "json":
            raise InputError(f"constraint {self.kind} must not be empty")


@dataclass(frozen=True, slots=True)
class Sampling:
    """What is asked of an answer: its limit, how its tokens are drawn, what form it must have.

    ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off; ``stop`` texts end the answer. ``repetition_penalty`` is
    CTRL's (prompt and answer), ``presence_penalty`` and ``frequency_penalty`` are OpenAI's (answer only); ``logit_bias`` holds (token id,
    number added to its logit). ``logprobs``: how many likeliest tokens to report beside each drawn one (None: no report). ``beams`` above 1
    is beam search. ``tools`` may be called as ``tool_choice`` says: ``none``, ``auto``, ``required``, or the name of one.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    beams: int = 1
    constraint: Constraint | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, bool, str], ...] = (
            ("max_new_tokens", self.max_new_tokens >= 1, ">= 1"),
            ("temperature", 0.0 <= self.temperature <= 2.0, "between 0 and 2"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, ">= 0 (0 is off)"),
            ("repetition_penalty", self.repetition_penalty > 0.0, "above 0"),
            ("min_p", 0.0 <= self.min_p < 1.0, "at least 0 and below 1"),
            ("presence_penalty", -2.0 <= self.presence_penalty <= 2.0, "between -2 and 2"),
            ("frequency_penalty", -2.0 <= self.frequency_penalty <= 2.0, "between -2 and 2"),
            ("logit_bias", all(-100.0 <= bias <= 100.0 for _, bias in self.logit_bias), "between -100 and 100"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= MOST_LOGPROBS, f"0 to {MOST_LOGPROBS}"),
            ("beams", 1 <= self.beams <= 16, "1 to 16"),
        )
        for name, good, allowed in checks:
            if not good:
                raise InputError(f"{name} must be {allowed}; got {getattr(self, name)!r}")
        names = [tool.name for tool in self.tools]
        if self.tool_choice not in ("none", "auto", "required", *names):
            allowed = ", ".join(["none", "auto", "required", *names])
            raise InputError(f"tool_choice must be one of {allowed}; got {self.tool_choice!r}")

    def parameters(self) -> set[str]:
        """Those of ``PARAMETERS`` that this asks for."""
        off = Sampling()
        asked = {name for name in _OPTIONAL if getattr(self, name) != getattr(off, name)}
        if self.tools and self.tool_choice == "none":
            asked.discard("tools")
        return asked | ({self.constraint.kind} if self.constraint is not None else set())


_OPTIONAL = tuple(name for name in PARAMETERS if name in Sampling.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of an answer. ``data`` are its bytes (a token may be part of a character); ``top``: the likeliest instead of it, best first."""

    data: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer. ``token_ids`` without the stop token; ``logprob`` is the sum over them (None when the engine cannot say,
    or was not asked for log-probabilities and computes them only then).

    ``tokens`` is there when ``Sampling.logprobs`` asked for it. ``tool_calls`` end an answer with the reason ``tool_calls``; their text is not in
    ``text``. ``cached_tokens`` of the prompt needed no computing. A strategy that thinks before it answers keeps the thoughts in ``reasoning``; one that asks several times keeps every answer in
    ``samples`` and says in ``calls`` how often it asked (token counts and latency are of all calls together). One that answers from documents
    says in ``hits`` what it was shown, in ``citations`` what its answer rests on and in ``steps`` what was done for it.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: str  # stop, length or tool_calls
    logprob: float | None = None
    first_token_s: float = 0.0
    latency_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning: str = ""
    samples: tuple[str, ...] = ()
    calls: int = 1
    tokens: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    cached_tokens: int = 0
    hits: tuple[Hit, ...] = ()
    citations: tuple[Citation, ...] = ()
    steps: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer: text, the tokens it is made of (when ``logprobs`` asked), calls that are complete.

    The last one carries the whole ``generation``.
    """

    text: str
    generation: Generation | None = None
    tokens: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Log-likelihood of each continuation after ``prompt``.

    After a conversation a continuation is a whole assistant turn, end-of-turn token included; after raw text it is bare text, cut
    into tokens together with the prompt. An empty raw prompt scores the continuation from its beginning (after the token that
    begins texts); one that is longer than the context is read in windows, each token after as much text as the windows give it.
    """

    prompt: Prompt
    continuations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContinuationScore:
    """``logprob`` is the sum over ``tokens`` tokens, in nats. ``greedy``: each of them was the likeliest one (None: not known)."""

    logprob: float
    tokens: int
    greedy: bool | None = None


@dataclass(frozen=True)
class EngineInfo:
    """Exactly what answers. Digests are sha256 in hexadecimal, empty when there is none.

    ``model`` is the name that a user types. ``model_digest`` is the adapter's (or the base's, without one), ``base_digest`` the
    base's. ``labels`` is set when only these answers can come (a classification head). ``answers`` is what another head answers with:
    ``number`` or ``tags``; "" without one. ``parameters`` are those of ``PARAMETERS`` that it honours.
    """

    model: str
    engine: str
    capabilities: frozenset[str]
    model_digest: str = ""
    base_digest: str = ""
    template_digest: str = ""
    prompt_digest: str = ""
    context_length: int = 0
    labels: tuple[str, ...] = ()
    answers: str = ""
    parameters: frozenset[str] = frozenset()
    meta: tuple[tuple[str, Any], ...] = ()

    def with_(self, **changes: Any) -> EngineInfo:
        """A copy with ``changes``."""
        return replace(self, **changes)


@runtime_checkable
class Engine(Protocol):
    """What answers. Ask ``info.capabilities`` before calling; a call that is not in it raises UnsupportedError."""

    @property
    def info(self) -> EngineInfo:
        """What exactly answers."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        """One answer a prompt, in order."""

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Delta]:
        """The answer piece by piece."""

    def score(
        self, requests: Sequence[ScoreRequest], progress: Progress = no_progress
    ) -> list[tuple[ContinuationScore, ...]]:
        """Log-likelihoods, one tuple a request, in order."""

    def embed(self, texts: Sequence[str], progress: Progress = no_progress) -> Vectors:
        """Unit-length vectors, shape (texts, width), float32."""

    def close(self) -> None:
        """Free memory and processes. Safe to call twice."""


def require(engine: Engine, capability: str) -> None:
    """Raise UnsupportedError unless ``engine`` can do ``capability``."""
    info = engine.info
    if capability not in info.capabilities:
        can = ", ".join(sorted(info.capabilities)) or "nothing"
        raise UnsupportedError(f"{info.model} on engine {info.engine} cannot {capability}; it can: {can}")


def require_parameters(info: EngineInfo, prompts: Sequence[Prompt], sampling: Sampling) -> None:
    """Raise UnsupportedError that names what ``sampling`` or ``prompts`` ask for and the engine does not honour."""
    asked = sampling.parameters()
    if any(message.images for prompt in prompts if not isinstance(prompt, str) for message in prompt):
        asked.add("images")
    lacking = sorted(asked - info.parameters)
    if lacking:
        can = ", ".join(sorted(info.parameters)) or "none of the optional ones"
        raise UnsupportedError(
            f"{', '.join(lacking)}: {info.model} on engine {info.engine} does not support "
            f"{'this' if len(lacking) == 1 else 'these'}; it supports: {can}",
            parameters=lacking,
        )


@runtime_checkable
class Stoppable(Protocol):
    """An engine that makes a whole answer without handing out its pieces, and can be told to stop."""

    def answer(self, prompt: Prompt, sampling: Sampling, stopped: threading.Event) -> Generation | None:
        """One answer, or None when ``stopped`` was set before it was done: soon after that nothing is computed for it any more."""


@runtime_checkable
class Reranker(Protocol):
    """An engine that can ``rerank``: it reads a query and a document together."""

    def rerank(self, query: str, documents: Sequence[str], progress: Progress = no_progress) -> list[float]:
        """How relevant each document is to ``query``, in order: between 0 and 1, higher is more."""


@runtime_checkable
class Checkable(Protocol):
    """An engine that can say whether it is well without answering anything."""

    def healthy(self, timeout_s: float) -> None:
        """Return when it can take requests; raise EngineError when it cannot, or says nothing within ``timeout_s``."""


@runtime_checkable
class Measured(Protocol):
    """An engine that counts what it does; the gateway shows it as metrics."""

    def stats(self) -> Mapping[str, float]:
        """Numbers by name, in the order in which they are shown."""


def answer_whole(engine: Engine, prompt: Prompt, sampling: Sampling, stopped: threading.Event) -> Generation | None:
    """One answer that nobody reads before it is done, or None when ``stopped`` was set first.

    An engine that is not ``Stoppable`` is streamed, because a stream can be left at each piece; one that cannot stream either
    answers to the end. Raises EngineError for a stream that ends without saying so.
    """
    if stopped.is_set():
        return None
    if isinstance(engine, Stoppable):
        return engine.answer(prompt, sampling, stopped)
    if STREAM not in engine.info.capabilities:
        return engine.generate([prompt], sampling)[0]
    deltas = engine.stream(prompt, sampling)
    try:
        for delta in deltas:
            if delta.generation is not None or stopped.is_set():
                return delta.generation
        raise EngineError(f"{engine.info.model} ended an answer without saying so")
    finally:
        close = getattr(deltas, "close", None)
        if close is not None:
            close()


def check_health(engine: Engine, timeout_s: float) -> None:
    """Raise EngineError when ``engine`` can tell that it is not well. One that cannot tell counts as well."""
    if isinstance(engine, Checkable):
        engine.healthy(timeout_s)
