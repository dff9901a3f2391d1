"""Plain text: paragraphs between blank lines."""

from __future__ import annotations

import re

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.knowledge.parsers._parsed import Parsed
from luthier.knowledge.parsers._text import decode

MEDIA_TYPES = ("text/plain",)
SUFFIXES = (".txt", ".text", ".log", ".rst")

_PARAGRAPH = re.compile(r"(?:[^\n]*\S[^\n]*\n?)+")


class Config(EntryConfig):
    """Nothing to choose."""


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """A block for each paragraph, its lines in ``place``. Raises DataError for what is not text."""
    text, encoding = decode(data, name)
    return Parsed(tuple(paragraphs(text)), meta={"encoding": encoding})


def paragraphs(text: str) -> list[Block]:
    """Blocks between blank lines."""
    blocks, line, at = [], 1, 0
    for found in _PARAGRAPH.finditer(text):
        line += text.count("\n", at, found.start())
        at = found.start()
        lines = found.group().rstrip("\n").count("\n") + 1
        place = f"line {line}" if lines == 1 else f"lines {line}-{line + lines - 1}"
        blocks.append(Block(found.group().strip("\n"), place=place))
    return blocks
