"""Plain text: paragraphs between blank lines."""

from __future__ import annotations

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.knowledge.parsers._parsed import Parsed
from luthier.knowledge.parsers._text import decode, lines_place

MEDIA_TYPES = ("text/plain",)
SUFFIXES = (".txt", ".text", ".log", ".rst")


class Config(EntryConfig):
    """Nothing to choose."""


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """A block for each paragraph, its lines in ``place``. Raises DataError for what is not text."""
    text, encoding = decode(data, name)
    return Parsed(paragraphs(text), meta={"encoding": encoding})


def paragraphs(text: str) -> list[Block]:
    """Blocks between blank lines."""
    blocks: list[Block] = []
    held: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.strip():
            held.append(line)
        elif held:
            blocks.append(Block("\n".join(held), place=lines_place(number - len(held), number - 1)))
            held = []
    return blocks
