"""Passages that fit the model's context: the best are kept, the last one is cut at a sentence, the others are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from luthier.core.document import Hit
from luthier.core.errors import ContextLengthError
from luthier.core.message import Conversation
from luthier.knowledge.answers._talk import AnswerTools, Order, ShownConfig, ordered
from luthier.knowledge.chunkers._spans import sentence_starts
from luthier.knowledge.prompt import Question, rag_prompt

_WORTH = 24
"""A piece of a passage with fewer tokens than this is not shown."""
_SHARE = 0.5
"""Of the context that is left for passages and answer, an answer's limit reserves at most this much."""


class Build(Protocol):
    """Makes the prompt from a question and hits."""

    def __call__(self, question: Question, hits: Sequence[Hit]) -> Conversation: ...


def prompts(config: ShownConfig) -> Build:
    """How prompts with passages are built as ``config`` says."""

    def build(question: Question, hits: Sequence[Hit]) -> Conversation:
        return rag_prompt(question, hits, instruction=config.instruction)

    return build


def fitted(
    question: Question, hits: Sequence[Hit], build: Build, tools: AnswerTools, order: Order = "best_first"
) -> tuple[Question, list[Hit]]:
    """The question, with the oldest turns dropped that leave no room for passages, and the passages in the order to show them.

    ``build`` makes the prompt; the prompt that is counted is the one that is sent. All passages are kept when nobody knows the context.
    Raises ContextLengthError when not one of them has room.
    """
    if not tools.context_tokens or not hits:
        return question, ordered(hits, order)
    empty = _cut(hits[0], 0)
    question = _with_room(question, lambda asked: build(asked, [empty]), tools)
    base = tools.count(build(question, [empty]))
    room = _limit(tools) - base
    kept: list[Hit] = []
    used = 0
    for hit in hits:
        marks = tools.count(build(question, [empty, _cut(hit, 0)])) - base if kept else 0
        whole = tools.count(build(question, [hit])) - base
        if used + marks + whole > room:
            piece = _piece(hit, room - used - marks, lambda piece: tools.count(build(question, [piece])) - base)
            kept += [piece] if piece is not None else []
            break
        kept.append(hit)
        used += marks + whole
    while kept and tools.count(build(question, kept)) > _limit(tools):
        kept.pop()
    if not kept:
        raise ContextLengthError(
            f"{tools.info.model} reads {tools.context_tokens} tokens; question and instruction take {base} and the answer up to "
            f"{tools.context_tokens - _limit(tools)} of them, which leaves no room for a passage",
            hint="ask for a shorter answer (max_tokens), or take a model with a longer context",
        )
    if len(kept) < len(hits) or kept[-1] is not hits[-1]:
        tools.note("fit", shown=len(kept), dropped=len(hits) - len(kept), cut=int(kept[-1] is not hits[len(kept) - 1]))
    return question, ordered(kept, order)


def _limit(tools: AnswerTools) -> int:
    """Tokens that a prompt may have."""
    reserved = min(tools.sampling.max_new_tokens, int(_SHARE * tools.context_tokens))
    return tools.context_tokens - reserved


def _with_room(question: Question, build: Callable[[Question], Conversation], tools: AnswerTools) -> Question:
    """The question with as many of its latest turns as leave half of the prompt to passages."""
    while True:
        first = 1 if question.before and question.before[0].role == "system" else 0
        fits = tools.count(build(question)) <= _limit(tools) * _SHARE
        if fits or len(question.before) <= first:
            return question
        later = next((n for n in range(first + 1, len(question.before)) if question.before[n].role == "user"), None)
        rest = question.before[later:] if later is not None else ()
        tools.note("forget", turns=len(question.before) - first - len(rest))
        question = replace(question, before=(*question.before[:first], *rest))


def _piece(hit: Hit, room: int, tokens: Callable[[Hit], int]) -> Hit | None:
    """As many of a passage's first sentences as have room; None when that is next to nothing."""
    if room < _WORTH:
        return None
    ends = [*sentence_starts(hit.chunk.text)[1:], len(hit.chunk.text)]
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        if tokens(_cut(hit, ends[middle - 1])) <= room:
            low = middle
        else:
            high = middle - 1
    return _cut(hit, ends[low - 1]) if low else None


def _cut(hit: Hit, end: int) -> Hit:
    return replace(hit, chunk=replace(hit.chunk, text=hit.chunk.text[:end].rstrip()))
