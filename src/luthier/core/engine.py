"""The engine contract: text in, tokens out.

Everything that answers satisfies ``Engine``: a local model, an adapter, a remote endpoint, a prompting strategy around any of
them. Evaluation, the tournament and the gateway know nothing else. Calls are safe from several threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import Prompt
from luthier.core.run import Progress, no_progress

Vectors = npt.NDArray[np.float32]

GENERATE, STREAM, SCORE, EMBED = "generate", "stream", "score", "embed"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off; ``stop`` texts end the answer."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, bool, str], ...] = (
            ("max_new_tokens", self.max_new_tokens >= 1, ">= 1"),
            ("temperature", 0.0 <= self.temperature <= 2.0, "between 0 and 2"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, ">= 0 (0 is off)"),
            ("repetition_penalty", self.repetition_penalty > 0.0, "above 0"),
        )
        for name, good, allowed in checks:
            if not good:
                raise InputError(f"{name} must be {allowed}; got {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer. ``token_ids`` without the stop token; ``logprob`` is the sum over them (None when the engine cannot say).

    A strategy that thinks before it answers keeps the thoughts in ``reasoning``; one that asks several times keeps every answer in
    ``samples`` and says in ``calls`` how often it asked (token counts and latency are of all calls together).
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: str  # stop or length
    logprob: float | None = None
    first_token_s: float = 0.0
    latency_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning: str = ""
    samples: tuple[str, ...] = ()
    calls: int = 1


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer. The last one carries the whole ``generation``."""

    text: str
    generation: Generation | None = None


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
    ``number`` or ``tags``; "" without one.
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
