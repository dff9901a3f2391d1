"""Tables in text: comma, semicolon, tab or bar between the cells."""

from __future__ import annotations

import csv as standard
import io

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import DataError
from luthier.knowledge.parsers._parsed import Parsed, row_blocks
from luthier.knowledge.parsers._text import decode

MEDIA_TYPES = ("text/csv", "text/tab-separated-values")
SUFFIXES = (".csv", ".tsv", ".tab")

standard.field_size_limit(2**31 - 1)  # for the whole process; a file's size is bounded before


class Config(EntryConfig):
    """``rows``: rows of a block; each block repeats the head, so that it can be understood alone."""

    rows: int = Field(default=20, ge=1)


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """Blocks of rows as Markdown tables, the rows in ``place``. Raises DataError for what is not text."""
    text, encoding = decode(data, name)
    delimiter = _delimiter(text)
    try:
        rows = list(standard.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=False))
    except standard.Error as error:
        raise DataError(f"{name} is no table that can be read: {error}") from error
    blocks = row_blocks(list(enumerate(rows, 1)), config.rows, "rows {}-{}".format)
    return Parsed(blocks, meta={"encoding": encoding, "delimiter": delimiter})


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
