"""What parsers return, and the forms of text that several of them write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from luthier.core.document import Block

if TYPE_CHECKING:
    from PIL.Image import Image

    from luthier.knowledge.parsers._layout import Piece


@dataclass(frozen=True)
class Parsed:
    """A file's content; ``knowledge.parse`` makes the Document of it."""

    blocks: Sequence[Block]
    title: str = ""
    pages: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


class ReadImage(Protocol):
    """Optical character recognition: the lines of text in a picture with their boxes in pixels, from the top down."""

    def __call__(self, picture: Image) -> list[Piece]:
        """Lines in reading order; [] when there is no text."""


class _Alive:
    """Called by parsers that work long, after each page; ``said`` is what hears of it."""

    said: Callable[[], None] | None = None

    def __call__(self) -> None:
        if self.said is not None:
            self.said()


alive = _Alive()


def reason(error: Exception) -> str:
    """What a library says is wrong, in one short line."""
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__


MOST_HEAD = 2000
"""Characters of a table's first row that are repeated with each part of the table."""
_MOST_WIDTH = 256
"""Columns that short rows are filled up to."""


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is the head. Short rows are filled up; empty columns at the end are left away; "" for no cells."""
    cleaned = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    cleaned = [row for row in cleaned if any(row)]
    width = max((number for row in cleaned for number, cell in enumerate(row, 1) if cell), default=0)
    if not width:
        return ""
    filled = [row[:width] + [""] * (min(width, _MOST_WIDTH) - len(row)) for row in cleaned]
    lines = [f"| {' | '.join(row)} |" for row in filled]
    return "\n".join([lines[0], f"|{' --- |' * len(filled[0])}", *lines[1:]])


def row_blocks(
    rows: Sequence[tuple[int, Sequence[str]]],
    at_once: int,
    place: Callable[[int, int], str],
    *,
    page: int | None = None,
) -> list[Block]:
    """Tables of ``at_once`` rows, each under the first row, so that a part of a long table can be understood alone.

    ``rows`` are (number, cells); ``place`` makes a block's place of its first and last row's number. A first row of more than ``MOST_HEAD``
    characters is not repeated.
    """
    if not rows:
        return []
    head = [rows[0][1]] if sum(map(len, rows[0][1])) <= MOST_HEAD else []
    blocks = []
    for start in range(1, max(2, len(rows)), at_once):
        part = rows[start : start + at_once]
        shown = [*([rows[0][1]] if start == 1 else head), *(cells for _, cells in part)]
        table = markdown_table(shown)
        first = rows[0][0] if start == 1 else part[0][0]
        if table:
            blocks.append(Block(table, "table", page=page, place=place(first, part[-1][0] if part else first)))
    return blocks
