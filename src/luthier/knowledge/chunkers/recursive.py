"""As many whole blocks, else lines, sentences, words, as fit: the default."""

from __future__ import annotations

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.knowledge.chunkers._need import overlap_of
from luthier.knowledge.chunkers._spans import ChunkTools, Joined, key_of


class Config(EntryConfig):
    """``tokens`` a chunk at most, of which ``overlap`` may repeat the end of the one before."""

    tokens: int = Field(default=256, ge=8)
    overlap: int = Field(default=30, ge=0)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """Chunks cut at the best places: before headings, then between blocks, lines, sentences, words."""
    joined = Joined(document, tools)
    key = key_of("recursive", config.model_dump())
    spans = joined.cut(joined.whole, config.tokens, overlap_of(config))
    return [joined.chunk(span, number, key) for number, span in enumerate(spans)]
