"""Source code: one block for each top-level piece, with its lines."""

from __future__ import annotations

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.knowledge.parsers._parsed import Parsed
from luthier.knowledge.parsers._text import decode, lines_place

MEDIA_TYPES = ("text/x-python", "text/x-c", "application/javascript", "application/json", "application/x-yaml")
SUFFIXES = (
    ".py", ".pyi", ".js", ".mjs", ".ts", ".tsx", ".jsx", ".java", ".kt", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".rs",
    ".rb", ".php", ".swift", ".scala", ".sh", ".bash", ".ps1", ".sql", ".r", ".lua", ".pl", ".m", ".jl", ".dart", ".json",
    ".jsonl", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".xml", ".css", ".scss", ".proto", ".tf", ".gradle",
)  # fmt: skip


class Config(EntryConfig):
    """Nothing to choose."""


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """Blocks between blank lines at the outermost level, their lines in ``place``. Raises DataError for what is not text."""
    text, encoding = decode(data, name)
    lines = text.split("\n")
    blocks, start, blank = [], 0, False
    for at, line in enumerate([*lines, "end"]):
        # a line that is not indented, after a blank one, begins a piece in most languages
        if at == len(lines) or (blank and line and not line[0].isspace()):
            blocks += _piece(lines, start, at)
            start = at
        blank = not line.strip()
    return Parsed(blocks, meta={"encoding": encoding, "suffix": name.rpartition(".")[2].lower()})


def _piece(lines: list[str], start: int, end: int) -> list[Block]:
    while start < end and not lines[start].strip():
        start += 1
    while end > start and not lines[end - 1].strip():
        end -= 1
    return [Block("\n".join(lines[start:end]), "code", place=lines_place(start + 1, end))] if start < end else []
