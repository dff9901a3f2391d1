"""Plain text: paragraphs between blank lines."""

from __future__ import annotations

from luthier.core.catalog import EntryConfig
from luthier.knowledge.parsers._parsed import Parsed
from luthier.knowledge.parsers._text import decode, paragraphs

MEDIA_TYPES = ("text/plain",)
SUFFIXES = (".txt", ".text", ".log", ".rst")


class Config(EntryConfig):
    """Nothing to choose."""


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """A block for each paragraph, its lines in ``place``. Raises DataError for what is not text."""
    text, encoding = decode(data, name)
    return Parsed(paragraphs(text), meta={"encoding": encoding})
