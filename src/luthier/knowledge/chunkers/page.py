"""Pages and slides."""

from __future__ import annotations

import itertools

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.knowledge.chunkers._need import overlap_of
from luthier.knowledge.chunkers._spans import ChunkTools, Joined, key_of


class Config(EntryConfig):
    """``tokens`` a chunk at most: a longer page is cut, with ``overlap``."""

    tokens: int = Field(default=500, ge=8)
    overlap: int = Field(default=30, ge=0)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """A chunk for each page; a document without pages is cut as ``recursive`` does."""
    joined = Joined(document, tools)
    key = key_of("page", config.model_dump())
    overlap = overlap_of(config)
    pages = [document.blocks[number].page for number in joined.numbers]
    begun = [start for before, page, start in zip([None, *pages], pages, joined.starts, strict=False) if page != before]
    cuts = sorted({0, *begun, len(joined.text)})
    spans = [cut for span in itertools.pairwise(cuts) for cut in joined.cut(span, config.tokens, overlap)]
    return [joined.chunk(span, number, key) for number, span in enumerate(spans)]
