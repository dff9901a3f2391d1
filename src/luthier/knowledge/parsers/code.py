"""Source code: one block for each top-level piece, with its lines."""

from __future__ import annotations

import re

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.knowledge.parsers._parsed import Parsed
from luthier.knowledge.parsers._text import decode

MEDIA_TYPES = ("text/x-python", "text/x-c", "application/javascript", "application/json", "application/x-yaml")
SUFFIXES = (
    ".py", ".pyi", ".js", ".mjs", ".ts", ".tsx", ".jsx", ".java", ".kt", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".rs",
    ".rb", ".php", ".swift", ".scala", ".sh", ".bash", ".ps1", ".sql", ".r", ".lua", ".pl", ".m", ".jl", ".dart", ".json",
    ".jsonl", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".xml", ".css", ".scss", ".proto", ".tf", ".gradle",
)  # fmt: skip

_BREAK = re.compile(r"\n(?:[ \t]*\n)+(?=\S)")
"""Blank lines before a line that is not indented: what stands between top-level pieces in most languages."""


class Config(EntryConfig):
    """Nothing to choose."""


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """Blocks between blank lines at the outermost level, their lines in ``place``. Raises DataError for what is not text."""
    text, encoding = decode(data, name)
    blocks, start, line = [], 0, 1
    ends = [(found.start(), found.end()) for found in _BREAK.finditer(text)] + [(len(text), len(text))]
    for end, following in ends:
        piece = text[start:end].rstrip()
        if piece.strip():
            skipped = len(piece) - len(piece.lstrip("\n"))
            first = line + skipped
            blocks.append(Block(piece.lstrip("\n"), "code", place=f"lines {first}-{line + piece.count(chr(10))}"))
        line += text.count("\n", start, following)
        start = following
    return Parsed(tuple(blocks), meta={"encoding": encoding, "suffix": name.rpartition(".")[2].lower()})
