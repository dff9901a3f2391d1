"""Tables in text: comma, semicolon, tab or bar between the cells."""

from __future__ import annotations

import csv as standard
import io

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.core.errors import DataError
from luthier.knowledge.parsers._parsed import Parsed, markdown_table
from luthier.knowledge.parsers._text import decode

MEDIA_TYPES = ("text/csv", "text/tab-separated-values")
SUFFIXES = (".csv", ".tsv", ".tab")


class Config(EntryConfig):
    """``rows``: rows of a block; each block repeats the head, so that a part of a long table can be understood alone."""

    rows: int = Field(default=20, ge=1)


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """Blocks of rows as Markdown tables, the rows in ``place``. Raises DataError for what is not text."""
    text, encoding = decode(data, name)
    delimiter = _delimiter(text)
    limit = standard.field_size_limit(max(131_072, len(text) + 1))
    try:
        rows = list(standard.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=False))
    except standard.Error as error:
        raise DataError(f"{name} is no table that can be read: {error}") from error
    finally:
        standard.field_size_limit(limit)
    return Parsed(
        tuple(row_blocks(rows, config.rows, "rows {}-{}")), meta={"encoding": encoding, "delimiter": delimiter}
    )


def row_blocks(rows: list[list[str]], at_once: int, place: str, *, page: int | None = None) -> list[Block]:
    """Tables of ``at_once`` rows under the first row; ``place`` is formatted with the first and last row's number, from 1."""
    if not rows:
        return []
    blocks = []
    for start in range(1, max(2, len(rows)), at_once):
        part = rows[start : start + at_once]
        table = markdown_table([rows[0], *part])
        if table:
            first = 1 if start == 1 else start + 1
            blocks.append(Block(table, "table", page=page, place=place.format(first, start + max(len(part), 0))))
    return blocks


def _delimiter(text: str) -> str:
    """The separator that cuts the first lines into the most alike rows."""
    sample = text[:20_000]
    best, most = ",", 0
    for each in ",;\t|":
        widths = [len(row) for row in standard.reader(io.StringIO(sample, newline=""), delimiter=each) if row][:50]
        common = max(set(widths), key=widths.count, default=1)
        alike = widths.count(common) * (common - 1)
        if alike > most:
            best, most = each, alike
    return best
