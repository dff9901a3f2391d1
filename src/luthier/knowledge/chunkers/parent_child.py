"""Small chunks are searched, the larger ones around them are shown."""

from __future__ import annotations

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.core.errors import InputError
from luthier.knowledge.chunkers._need import overlap_of
from luthier.knowledge.chunkers._spans import ChunkTools, Joined, key_of


class Config(EntryConfig):
    """Parents of ``tokens`` and, within them, children of ``child_tokens``; ``overlap`` is that of the parents."""

    tokens: int = Field(default=400, ge=16)
    child_tokens: int = Field(default=80, ge=8)
    overlap: int = Field(default=0, ge=0)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """Each parent (which is not searched itself) followed by its children. Raises InputError for children as large as parents."""
    if config.child_tokens >= config.tokens:
        raise InputError(f"child_tokens must be smaller than tokens ({config.tokens}); got {config.child_tokens}")
    joined = Joined(document, tools)
    key = key_of("parent_child", config.model_dump())
    out: list[Chunk] = []
    for span in joined.cut(joined.whole, config.tokens, overlap_of(config)):
        parent = joined.chunk(span, len(out), key, searched=False)
        out.append(parent)
        for child in joined.cut((span.start, span.end), config.child_tokens):
            out.append(joined.chunk(child, len(out), key, parent=parent.id))
    return out
