"""Pages and slides."""

from __future__ import annotations

from itertools import groupby

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.knowledge.chunkers._spans import ChunkTools, Joined, key_of


class Config(EntryConfig):
    """``tokens`` a chunk at most: a longer page is cut, with ``overlap``."""

    tokens: int = Field(default=500, ge=8)
    overlap: int = Field(default=30, ge=0)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """A chunk for each page; a document without pages is cut as ``recursive`` does."""
    key = key_of("page", config.model_dump())
    out: list[Chunk] = []
    for _, numbers in groupby(range(len(document.blocks)), key=lambda number: document.blocks[number].page):
        joined = Joined(document, tools, numbers)
        for span in joined.cut((0, len(joined.text)), config.tokens, min(config.overlap, config.tokens // 2)):
            out.append(joined.chunk(span, len(out), key))
    return out
