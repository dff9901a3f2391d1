"""What the ways of answering share: they are talks, which yield what they want to ask and are sent the replies.

Talks of many questions go on in step, so that what all of them ask next is one batch. The call that writes what the reader sees is
yielded as ``Say`` and is streamed; it comes last, and at most once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.core.engine import EngineInfo, Generation, Sampling, Vectors
from luthier.core.message import Prompt
from luthier.knowledge.prompt import NOT_FOUND, Question
from luthier.strategies._thinking import Ask

Order: TypeAlias = Literal["best_first", "best_last", "edges"]
Compress: TypeAlias = Literal["none", "extractive", "written"]


class ShownConfig(EntryConfig):
    """How passages are shown; the entries' configs, which have these fields, say what they mean."""

    order: Order = "best_first"
    instruction: str = ""
    compress: Compress = "none"
    keep: float = Field(default=0.5, gt=0.0, le=1.0)


@dataclass(frozen=True, slots=True)
class Say:
    """The call that writes the answer, from the passages ``shown`` (passage 1 first)."""

    ask: Ask
    shown: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """What a talk returns: the answer and the passages that its marks point to. Who runs the talk counts its calls."""

    made: Generation
    shown: tuple[Hit, ...] = ()


Talk: TypeAlias = Generator[Sequence[Ask] | Say, Any, Written]
"""Yields calls and is sent their replies (``Generation`` or the error), or yields ``Say`` and is sent the generation."""


@dataclass
class AnswerTools:
    """What a way of answering may use, for one question.

    ``find`` searches with the question's text or with another, ``count`` gives the tokens of a prompt, ``context_tokens`` is the model's context (0:
    not known), ``embed`` makes unit vectors, ``info`` is the model that writes. ``steps`` is what was done, for the trace. ``originals`` are hits by
    their chunk's id whose text is shown shortened: citations quote them.
    """

    find: Callable[[str], list[Hit]]
    count: Callable[[Prompt], int]
    embed: Callable[[Sequence[str]], Vectors] | None
    info: EngineInfo
    sampling: Sampling
    steps: list[Mapping[str, Any]]
    originals: dict[str, Hit] = field(default_factory=dict)

    @property
    def context_tokens(self) -> int:
        """Tokens that prompt and answer may have together; 0 when nobody knows."""
        return self.info.context_length

    @property
    def weighed(self) -> Sampling:
        """The request's sampling, for answers whose log-probability is needed; some engines compute it only when they are asked."""
        silent = self.sampling.logprobs is None and "logprobs" in self.info.parameters
        return replace(self.sampling, logprobs=0) if silent else self.sampling

    def retold(self, hit: Hit, text: str) -> Hit:
        """``hit`` with ``text`` in the place of its own, which is kept."""
        self.originals.setdefault(hit.chunk.id, hit)
        return replace(hit, chunk=replace(hit.chunk, text=text))

    def note(self, step: str, **details: Any) -> None:
        """Keep what was done."""
        self.steps.append({"step": step, **details})


def ordered(hits: Sequence[Hit], order: Order) -> list[Hit]:
    """``hits``, best first, in the order in which they are shown."""
    if order == "best_last":
        return list(hits)[::-1]
    if order == "edges":
        return [*hits[::2], *list(hits[1::2])[::-1]]
    return list(hits)


def plainly(sampling: Sampling) -> Sampling:
    """``sampling`` for what nobody reads but the model: without a form, tools and what ends the answer."""
    return replace(sampling, constraint=None, tools=(), tool_choice="auto", stop=())


def not_found(question: Question) -> Written:
    """The sentence that says so, without a call."""
    return Written(Generation(NOT_FOUND[question.language], (), (), "stop", calls=0))
