"""Windows of a fixed number of tokens, wherever they end."""

from __future__ import annotations

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.knowledge.chunkers._need import overlap_of
from luthier.knowledge.chunkers._spans import ChunkTools, Joined, key_of


class Config(EntryConfig):
    """``tokens`` a chunk, the last one shorter; each begins ``overlap`` tokens before the end of the one before."""

    tokens: int = Field(default=200, ge=8)
    overlap: int = Field(default=30, ge=0)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """Windows over the document's tokens. Raises InputError for an overlap of more than half a window."""
    joined = Joined(document, tools)
    key = key_of("fixed", config.model_dump())
    spans = joined.cut(joined.whole, config.tokens, overlap_of(config), anywhere=True)
    return [joined.chunk(span, number, key) for number, span in enumerate(spans)]
