"""Documents into chunks, by a chunker of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core import catalog
from luthier.core.document import Chunk, Document
from luthier.knowledge.chunkers._spans import ChunkTools, word_offsets

DEFAULT = "recursive"


def chunk_document(
    document: Document,
    chunker: str = DEFAULT,
    options: Mapping[str, Any] | None = None,
    tools: ChunkTools | None = None,
) -> list[Chunk]:
    """The chunks of a document, in order. Without ``tools`` tokens are words and nothing can be embedded or written.

    Raises NotFoundError for an unknown chunker, InputError for wrong options and for tools that the chunker needs and has not.
    """
    entry = catalog.load("chunkers", chunker)
    chunks: list[Chunk] = entry(document, entry.configure(options), tools or ChunkTools(word_offsets))
    return chunks
