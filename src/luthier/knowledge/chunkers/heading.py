"""Sections: what stands under one heading stays together."""

from __future__ import annotations

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.knowledge.chunkers._need import overlap_of
from luthier.knowledge.chunkers._spans import ChunkTools, Cut, Joined, Span, key_of


class Config(EntryConfig):
    """``tokens`` a chunk at most: a longer section is cut with ``overlap``; sections shorter than ``join_under`` join the next of their level."""

    tokens: int = Field(default=300, ge=8)
    overlap: int = Field(default=30, ge=0)
    join_under: int = Field(default=60, ge=0)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """A chunk for each section, its heading included; the headings above it are in ``headings``."""
    joined = Joined(document, tools)
    key = key_of("heading", config.model_dump())
    overlap = overlap_of(config)
    spans: list[Cut] = []
    for span in _sections(joined, config):
        spans += joined.fit(span, config.tokens, overlap)
    return [joined.chunk(span, number, key) for number, span in enumerate(spans)]


def _sections(joined: Joined, config: Config) -> list[Span]:
    blocks = joined.document.blocks
    heads = [
        (start, blocks[number].level)
        for number, start in zip(joined.numbers, joined.starts, strict=True)
        if blocks[number].kind == "heading"
    ]
    edges = [(0, 7), *heads] if not heads or heads[0][0] else heads
    out: list[Span] = []
    begun: tuple[int, int] | None = None
    for (start, level), (end, following) in zip(edges, [*edges[1:], (len(joined.text), 0)], strict=True):
        begin = begun[0] if begun is not None else start
        above = min(level, begun[1]) if begun is not None else level
        short = joined.count((begin, end)) < config.join_under
        if short and following >= above and end < len(joined.text):
            begun = (begin, above)
            continue
        span = joined.trim((begin, end))
        if span[1] > span[0]:
            out.append(span)
        begun = None
    return out
