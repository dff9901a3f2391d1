"""Excel workbooks (Office Open XML): the tables on each sheet."""

from __future__ import annotations

import datetime
import io
import warnings
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.core.errors import DataError
from luthier.knowledge.parsers._parsed import Parsed, row_blocks

MEDIA_TYPES = ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",)
SUFFIXES = (".xlsx", ".xlsm", ".xltx")


class Config(EntryConfig):
    """``rows``: rows of a block, each with the table's first row again; ``most_cells`` bounds a workbook."""

    rows: int = Field(default=20, ge=1)
    most_cells: int = Field(default=2_000_000, ge=1)


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """A heading for each sheet, then its tables (areas between empty rows). Formulas are shown as their last values.

    Raises DataError for a damaged or enormous workbook.
    """
    import openpyxl

    blocks: list[Block] = []
    cells = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of features that are not read
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        try:
            for number, sheet in enumerate(book.worksheets, 1):
                sheet.reset_dimensions()  # some writers state wrong ones
                found, read = _sheet(sheet, number, config, config.most_cells - cells, name)
                blocks += found
                cells += read
            count, title = len(book.worksheets), (book.properties.title or "").strip()
        finally:
            book.close()
    return Parsed(blocks, title=title, pages=count)


def _sheet(sheet: Any, number: int, config: Config, room: int, name: str) -> tuple[list[Block], int]:
    from openpyxl.utils import get_column_letter

    areas: list[list[tuple[int, list[str]]]] = [[]]
    cells = 0
    for line, row in enumerate(sheet.iter_rows(values_only=True), 1):
        values = [_value(each) for each in row]
        while values and not values[-1]:
            values.pop()
        cells += len(values)
        if cells > room:
            raise DataError(f"{name} has more than {config.most_cells:,} cells (most_cells)")
        if values:
            areas[-1].append((line, values))
        elif areas[-1]:
            areas.append([])
    blocks = [Block(sheet.title, "heading", 2, page=number, place=f"sheet {sheet.title}")]
    for area in filter(None, areas):
        width = get_column_letter(max(len(values) for _, values in area))
        place = f"sheet {sheet.title}!A{{}}:{width}{{}}" if "{" not in sheet.title else "rows {}-{}"
        blocks += row_blocks(area, config.rows, place.format, page=number)
    return (blocks if len(blocks) > 1 else []), cells


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return value.isoformat(" ") if isinstance(value, datetime.datetime) else str(value)
