"""Source code: top-level pieces together, never half a line."""

from __future__ import annotations

import itertools

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.knowledge.chunkers._spans import ChunkTools, Joined, Span, key_of


class Config(EntryConfig):
    """``tokens`` a chunk at most; neighbouring pieces share one when they fit, a longer piece is cut between lines."""

    tokens: int = Field(default=300, ge=8)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """Chunks of whole lines; the lines are in ``place``."""
    joined = Joined(document, tools)
    key = key_of("code", config.model_dump())
    lines = [0, *(at + 1 for at, character in enumerate(joined.text) if character == "\n"), len(joined.text)]
    spans: list[Span] = []
    for start, end in zip(joined.starts, [*joined.starts[1:], len(joined.text)], strict=True):
        if spans and joined.count((spans[-1][0], end)) <= config.tokens:
            spans[-1] = (spans[-1][0], end)
        elif joined.count((start, end)) <= config.tokens:
            spans.append((start, end))
        else:
            spans += _by_lines(joined, [at for at in lines if start <= at < end] + [end], config.tokens)
    trimmed = [(start, joined.trim((start, end))[1]) for start, end in spans]  # indentation stays
    return [joined.chunk(span, number, key) for number, span in enumerate(trimmed)]


def _by_lines(joined: Joined, starts: list[int], most: int) -> list[Span]:
    out: list[Span] = []
    begin = starts[0]
    for before, end in itertools.pairwise(starts):
        if end > begin and joined.count((begin, end)) > most and before > begin:
            out.append((begin, before))
            begin = before
    last = (begin, starts[-1])
    whole = [*out, last]
    return [cut for span in whole for cut in ([span] if joined.count(span) <= most else joined.cut(span, most))]
