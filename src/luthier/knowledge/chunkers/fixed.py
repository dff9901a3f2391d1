"""Windows of a fixed number of tokens, wherever they end."""

from __future__ import annotations

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.core.errors import InputError
from luthier.knowledge.chunkers._spans import ChunkTools, Joined, key_of


class Config(EntryConfig):
    """``tokens`` a chunk, the last one shorter; each begins ``overlap`` tokens before the end of the one before."""

    tokens: int = Field(default=200, ge=8)
    overlap: int = Field(default=30, ge=0)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """Windows over the document's tokens. Raises InputError for an overlap that is not smaller than the window."""
    if config.overlap >= config.tokens:
        raise InputError(f"overlap must be smaller than tokens ({config.tokens}); got {config.overlap}")
    joined = Joined(document, tools)
    starts, ends = joined.tokens
    key = key_of("fixed", config.model_dump())
    spans = []
    for first in range(0, len(starts), config.tokens - config.overlap):
        last = min(first + config.tokens, len(starts)) - 1
        spans.append((starts[first], ends[last]))
        if last == len(starts) - 1:
            break
    return [joined.chunk(span, number, key) for number, span in enumerate(spans)]
