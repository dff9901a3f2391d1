"""Passages for a question: found, and shortened where the config says so."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.document import Hit
from luthier.core.errors import InputError
from luthier.knowledge.answers._talk import AnswerTools, ShownConfig
from luthier.knowledge.answers._write import Steps, noted
from luthier.knowledge.cite import sentences
from luthier.knowledge.prompt import Question

_NOTE_TOKENS = 256


def gathered(question: Question, config: ShownConfig, tools: AnswerTools, text: str = "") -> Steps:
    """What a search for ``text`` (the question itself, when empty) finds, best first."""
    hits = tools.find(text or question.text)
    if not hits or config.compress == "none":
        return hits
    before = _tokens(hits, tools)
    short = _extracted(question, hits, config.keep, tools) if config.compress == "extractive" else None
    if short is None:
        short = yield from noted(question, hits, _NOTE_TOKENS, tools)
    after = _tokens(short, tools)
    tools.note("compress", how=config.compress, tokens=before, kept_tokens=after, passages=len(short))
    return short


def _tokens(hits: Sequence[Hit], tools: AnswerTools) -> int:
    return sum(tools.count(hit.chunk.text) for hit in hits if hit.chunk.text)


def _extracted(question: Question, hits: Sequence[Hit], keep: float, tools: AnswerTools) -> list[Hit]:
    """The sentences of all passages that are most like the question, as many as the share ``keep`` of the tokens holds, in their order.

    Raises InputError without an embedder.
    """
    if tools.embed is None:
        raise InputError(
            "compress: extractive needs an embedder; what is searched here has none", hint="compress: written"
        )
    pieces = [(row, sentence) for row, hit in enumerate(hits) for sentence in sentences(hit.chunk.text)]
    vectors = tools.embed([question.text, *(sentence for _, sentence in pieces)])
    likeness = vectors[1:] @ vectors[0]
    sizes = [tools.count(sentence) for _, sentence in pieces]
    room = keep * sum(sizes)
    chosen: set[int] = set()
    for place in sorted(range(len(pieces)), key=lambda each: -float(likeness[each])):
        if chosen and room < sizes[place]:
            continue
        chosen.add(place)
        room -= sizes[place]
    kept = [[text for n, (of, text) in enumerate(pieces) if of == row and n in chosen] for row in range(len(hits))]
    return [tools.retold(hit, " ".join(texts)) for hit, texts in zip(hits, kept, strict=True) if texts]
