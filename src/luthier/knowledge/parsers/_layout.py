"""Where text stands on a page, into reading order: columns, lines, paragraphs, headings, tables.

Columns are found by cutting the page along white gaps, first where it is cut across, then downwards (recursive X-Y cut, Nagy and Seth 1984).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from luthier.core.document import Block, Box
from luthier.knowledge.parsers._parsed import markdown_table

HEADING = 1.15
"""A line that is so much higher than the body's is a heading."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text and its box in points, from the upper left corner. ``letters`` is the height of its font, which the box of a word
    without high and low letters does not have; 0 where it is not known.
    """

    text: str
    left: float
    top: float
    right: float
    bottom: float
    letters: float = 0.0

    @property
    def height(self) -> float:
        """In points."""
        return self.bottom - self.top

    @property
    def middle(self) -> float:
        """Of its height."""
        return (self.top + self.bottom) / 2


Line = list[Piece]


@dataclass(frozen=True, slots=True)
class Body:
    """What is usual in a document: the height of a line's box, and of its font."""

    line: float = 10.0
    letters: float = 0.0


def body_of(pages: Sequence[Sequence[Piece]]) -> Body:
    """The usual heights, by characters."""
    pieces = [piece for page in pages for piece in page]
    if not pieces:
        return Body()
    return Body(_middle(pieces, "height"), _middle(pieces, "letters"))


def _middle(pieces: Sequence[Piece], name: str) -> float:
    weights: dict[float, int] = {}
    for piece in pieces:
        value = round(getattr(piece, name), 1)
        weights[value] = weights.get(value, 0) + len(piece.text)
    half, seen = sum(weights.values()) / 2, 0
    for value in sorted(weights):
        seen += weights[value]
        if seen >= half:
            return value
    return 0.0


def page_blocks(pieces: Sequence[Piece], size: tuple[float, float], body: Body, page: int) -> list[Block]:
    """The blocks of one page in reading order."""
    blocks = []
    for region in _regions(list(pieces), size, body.line, 0):
        for lines in _groups(_lines(region), body.line):
            blocks.append(_block(lines, body, page))
    return [block for block in blocks if block.text]


def recognised_blocks(pieces: Sequence[Piece], size: tuple[float, float], page: int, scale: float) -> list[Block]:
    """The blocks of lines that were recognised in a picture of a page: ``scale`` pixels are a point. Heights of such lines vary, so that
    only what is much higher than the rest is a heading."""
    own = [
        Piece(each.text, each.left / scale, each.top / scale, each.right / scale, each.bottom / scale)
        for each in pieces
    ]
    body = Body(median(piece.height for piece in own)) if own else Body()
    return [replace(block, place="read by OCR") for block in page_blocks(own, size, body, page)]


def _regions(pieces: list[Piece], size: tuple[float, float], body: float, depth: int) -> Iterator[list[Piece]]:
    """Parts of a page that are read one after the other."""
    if len(pieces) < 2 or depth > 12:
        yield pieces
        return
    columns = _split(pieces, "left", "right", max(1.1 * body, 0.015 * size[0]))
    if len(columns) > 1 and all(_is_column(column, body) for column in columns) and not _is_grid(columns):
        for column in columns:
            yield from _regions(column, size, body, depth + 1)
        return
    rows = _split(pieces, "top", "bottom", 0.9 * body)
    if len(rows) < 2:
        yield pieces
        return
    held: list[Piece] = []  # neighbouring rows that have no columns of their own are read together
    for row in _with_columns_joined(rows, size, body):
        if _has_columns(row, size, body):
            if held:
                yield held
                held = []
            yield from _regions(row, size, body, depth + 1)
        else:
            held += row
    if held:
        yield held


def _with_columns_joined(rows: list[list[Piece]], size: tuple[float, float], body: float) -> Iterator[list[Piece]]:
    """Rows, the neighbouring ones that are cut by the same white column taken together."""
    gathered: list[Piece] = []
    for row in rows:
        both = gathered + row
        if gathered and _has_columns(both, size, body):
            gathered = both
            continue
        if gathered:
            yield gathered
        gathered = list(row)
    if gathered:
        yield gathered


def _has_columns(pieces: list[Piece], size: tuple[float, float], body: float) -> bool:
    columns = _split(pieces, "left", "right", max(1.1 * body, 0.015 * size[0]))
    return len(columns) > 1 and all(_is_column(column, body) for column in columns) and not _is_grid(columns)


def _is_column(pieces: list[Piece], body: float) -> bool:
    """Running text: several lines that are wide for their height."""
    lines = _lines(pieces)
    wide = median(line[-1].right - line[0].left for line in lines)
    return len(lines) >= 3 and wide > 9 * body


def _is_grid(columns: list[list[Piece]]) -> bool:
    """A table's columns: their lines stand at the same heights, and most are short."""
    first = [line[0].middle for line in _lines(columns[0])]
    texts = [sum(len(piece.text) for piece in line) for column in columns for line in _lines(column)]
    if median(texts) > 28:
        return False
    others = [line[0].middle for column in columns[1:] for line in _lines(column)]
    level = sum(any(abs(own - other) < 2 for other in others) for own in first)
    return level > 0.7 * len(first)


def _split(pieces: list[Piece], low: str, high: str, gap: float) -> list[list[Piece]]:
    """Cut where no piece is for at least ``gap``."""
    out: list[list[Piece]] = []
    end = float("-inf")
    for piece in sorted(pieces, key=lambda each: float(getattr(each, low))):
        if getattr(piece, low) - end >= gap or not out:
            out.append([])
        out[-1].append(piece)
        end = max(end, getattr(piece, high))
    return out


def _lines(pieces: Sequence[Piece]) -> list[Line]:
    """Pieces that stand at the same height, from left to right; the highest first."""
    lines: list[Line] = []
    for piece in sorted(
        pieces, key=lambda each: -each.height
    ):  # the low ones (commas, dashes) find their line by the high ones
        for line in lines:
            own = line[0]
            common = min(piece.bottom, own.bottom) - max(piece.top, own.top)
            if common > 0.5 * piece.height:
                line.append(piece)
                break
        else:
            lines.append([piece])
    lines.sort(key=lambda line: line[0].middle)
    return [sorted(line, key=lambda each: each.left, reverse=_right_to_left(line)) for line in lines]


def _groups(lines: list[Line], body: float) -> Iterator[list[Line]]:
    """Lines that make one block: a table, a heading, or a paragraph."""
    at = 0
    while at < len(lines):
        end = _table_end(lines, at, body)
        if end - at >= 3:
            yield lines[at:end]
            at = end
            continue
        end = at + 1
        while (
            end < len(lines) and _continues(lines[end - 1], lines[end], body) and _table_end(lines, end, body) - end < 3
        ):
            end += 1
        yield lines[at:end]
        at = end


def _table_end(lines: list[Line], start: int, body: float) -> int:
    """Where a run of lines of several cells that stand below one another ends."""
    first = _cells(lines[start], body)
    if len(first) < 2:
        return start + 1
    end = start + 1
    while end < len(lines):
        cells = _cells(lines[end], body)
        near = lines[end][0].top - lines[end - 1][0].bottom < 2.5 * body
        alike = sum(any(_overlap(cell, other) for other in first) for cell in cells)
        if not near or len(cells) < 2 or alike < 0.6 * len(cells):
            break
        end += 1
    return end


def _cells(line: Line, body: float) -> list[Piece]:
    """Pieces of a line with wide gaps between them."""
    cells: list[Piece] = []
    for piece in line:
        if cells and piece.left - cells[-1].right < 0.9 * body:
            last = cells[-1]
            cells[-1] = Piece(_joined(last, piece), last.left, last.top, max(last.right, piece.right), last.bottom)
        else:
            cells.append(piece)
    return cells


def _joined(one: Piece, other: Piece) -> str:
    wide = _is_wide(one.text[-1:]) and _is_wide(other.text[:1])  # Chinese and Japanese have no spaces between words
    apart = max(other.left - one.right, one.left - other.right) > (1.0 if wide else 0.12) * max(
        one.height, other.height
    )
    spaced = one.text[-1:].isspace() or other.text[:1].isspace()
    return one.text + (" " if apart and not spaced else "") + other.text


def _right_to_left(line: Line) -> bool:
    """Whether most letters of a line are Arabic or Hebrew."""
    sides = [unicodedata.bidirectional(character) for piece in line for character in piece.text]
    return sides.count("R") + sides.count("AL") > sides.count("L")


def _is_wide(character: str) -> bool:
    return bool(character) and unicodedata.east_asian_width(character) in "WF"


def _overlap(one: Piece, other: Piece) -> bool:
    return min(one.right, other.right) - max(one.left, other.left) > 0


def _continues(line: Line, following: Line, body: float) -> bool:
    """Whether the next line belongs to the same paragraph."""
    height, next_height = _height(line), _height(following)
    if abs(height - next_height) > 0.2 * max(height, next_height):
        return False
    gap = following[0].top - line[0].bottom
    return gap < 0.75 * max(body, height) and min(each.left for each in following) - line[0].left < 4 * body


def _height(line: Line) -> float:
    return max(piece.height for piece in line)


def _block(lines: list[Line], body: Body, page: int) -> Block:
    box = _box(lines)
    if len(lines) >= 3 and all(len(_cells(line, body.line)) >= 2 for line in lines):
        return Block(markdown_table(_grid(lines, body.line)), "table", page=page, box=box)
    text = "\n".join(_line_text(line) for line in lines).strip()
    ratio = _size_ratio(lines[0], body)
    if ratio >= HEADING and len(lines) <= 3 and len(text) <= 200:
        return Block(
            " ".join(text.split()), "heading", 1 if ratio > 1.8 else 2 if ratio > 1.4 else 3, page=page, box=box
        )
    return Block(text, page=page, box=box)


def _size_ratio(line: Line, body: Body) -> float:
    """How many times higher a line is than the document's usual one: by its font, by its box where that is not known."""
    letters = max(piece.letters for piece in line)
    if letters and body.letters:
        return letters / body.letters
    return _height(line) / body.line if body.line else 1.0


def _line_text(line: Line) -> str:
    whole = line[0]
    for piece in line[1:]:
        left, right = min(whole.left, piece.left), max(whole.right, piece.right)
        whole = Piece(_joined(whole, piece), left, whole.top, right, whole.bottom)
    return whole.text.strip()


def _grid(lines: list[Line], body: float) -> list[list[str]]:
    """Cells in columns: the white gaps that all lines share."""
    rows = [_cells(line, body) for line in lines]
    edges = _split([cell for row in rows for cell in row], "left", "right", 0.3 * body)
    starts = [min(cell.left for cell in column) for column in edges]
    if len(starts) < 2:
        return [[cell.text.strip() for cell in row] for row in rows]
    grid = []
    for row in rows:
        line = [""] * len(starts)
        for cell in row:
            place = max(number for number, start in enumerate(starts) if start <= cell.left + 0.1)
            line[place] = " ".join(filter(None, (line[place], cell.text.strip())))
        grid.append(line)
    return grid


def _box(lines: list[Line]) -> Box:
    pieces = [piece for line in lines for piece in line]
    return (
        round(min(piece.left for piece in pieces), 1), round(min(piece.top for piece in pieces), 1),
        round(max(piece.right for piece in pieces), 1), round(max(piece.bottom for piece in pieces), 1),
    )  # fmt: skip
