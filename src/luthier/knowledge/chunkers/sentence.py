"""Whole sentences, as many as fit."""

from __future__ import annotations

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.knowledge.chunkers._spans import ChunkTools, Joined, Span, key_of


class Config(EntryConfig):
    """``tokens`` a chunk at most (a longer sentence is cut); ``overlap`` sentences are repeated."""

    tokens: int = Field(default=200, ge=8)
    overlap: int = Field(default=1, ge=0)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """Runs of sentences."""
    joined = Joined(document, tools)
    key = key_of("sentence", config.model_dump())
    spans = _runs(joined, joined.sentences, config.tokens, config.overlap)
    return [joined.chunk(span, number, key) for number, span in enumerate(spans)]


def _runs(joined: Joined, starts: list[int], most: int, overlap: int) -> list[Span]:
    """Runs of neighbouring pieces (``starts``, the end last) of at most ``most`` tokens; a longer piece is cut."""
    spans: list[Span] = []
    first = 0
    while first < len(starts) - 1:
        end = first + 1
        while end < len(starts) - 1 and joined.count((starts[first], starts[end + 1])) <= most:
            end += 1
        span = joined.trim((starts[first], starts[end]))
        if span[1] > span[0]:
            spans += [span] if joined.count(span) <= most else joined.cut(span, most)
        if end >= len(starts) - 1:
            break
        first = max(first + 1, end - overlap) if end - first > overlap else end
    return spans
