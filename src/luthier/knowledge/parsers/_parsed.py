"""What parsers return, and the forms of text that several of them write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from luthier.core.document import Block


@dataclass(frozen=True)
class Parsed:
    """A file's content; ``knowledge.parse`` makes the Document of it."""

    blocks: Sequence[Block]
    title: str = ""
    pages: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


class ReadImage(Protocol):
    """Optical character recognition: the lines of text in an encoded image (PNG, JPEG, ...), from the top down."""

    def __call__(self, image: bytes) -> list[str]:
        """Lines in reading order; [] when there is no text."""


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is the head. Short rows are filled up; empty columns at the end are left away; "" for no cells."""
    cleaned = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    cleaned = [row for row in cleaned if any(row)]
    width = max((number for row in cleaned for number, cell in enumerate(row, 1) if cell), default=0)
    if not width:
        return ""
    filled = [(row + [""] * width)[:width] for row in cleaned]
    lines = [f"| {' | '.join(row)} |" for row in filled]
    return "\n".join([lines[0], f"|{' --- |' * width}", *lines[1:]])
