"""Whole sentences, as many as fit."""

from __future__ import annotations

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.knowledge.chunkers._spans import ChunkTools, Cut, Joined, key_of


class Config(EntryConfig):
    """``tokens`` a chunk at most (a longer sentence is cut); up to ``overlap`` sentences are repeated, where they leave room for a new one."""

    tokens: int = Field(default=200, ge=8)
    overlap: int = Field(default=1, ge=0)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """Runs of sentences."""
    joined = Joined(document, tools)
    key = key_of("sentence", config.model_dump())
    return [joined.chunk(span, number, key) for number, span in enumerate(_runs(joined, config))]


def _runs(joined: Joined, config: Config) -> list[Cut]:
    starts, most = joined.sentences, config.tokens
    out: list[Cut] = []
    first = done = 0  # sentences: where the run begins, and up to where all are in one
    while done < len(starts) - 1:
        end = done + 1
        if not joined.fits((starts[first], starts[end]), most):
            if first < done:  # no room for a sentence beside those repeated
                first += 1
                continue
            out += joined.cut((starts[first], starts[end]), most)
            first = done = end
            continue
        while end < len(starts) - 1 and joined.count((starts[first], starts[end + 1])) <= most:
            end += 1
        while not joined.fits((starts[first], starts[end]), most):
            end -= 1
        out += joined.fit((starts[first], starts[end]), most)
        first, done = max(end - config.overlap, first + 1), end
    return [each for each in out if each.end > each.start]
