"""Excel: sheets, tables with their cells' addresses, values as people see them, bounds."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from luthier.core.errors import DataError
from luthier.knowledge.parse import parse_bytes


def test_sheets_and_tables_with_their_places(make: SimpleNamespace) -> None:
    document = parse_bytes(make.xlsx(), "stock.xlsx")
    assert [(block.kind, block.place) for block in document.blocks] == [
        ("heading", "sheet Prices"),
        ("table", "sheet Prices!A1:B3"),
        ("table", "sheet Prices!A5:B6"),
        ("heading", "sheet 库存"),
        ("table", "sheet 库存!A1:B2"),
    ]
    assert document.blocks[1].text.splitlines()[2:] == ["| string | 12.5 |", "| rosin | 8 |"]
    assert "| 2024-03-01 | True |" in document.blocks[2].text
    assert "| 琴弓 | 30 |" in document.blocks[4].text and document.pages == 2


def test_long_tables_repeat_their_head() -> None:
    document = parse_bytes(_book([["part", "price"], *([f"part {n}", n] for n in range(1, 51))]), "long.xlsx")
    tables = [block for block in document.blocks if block.kind == "table"]
    assert [table.place for table in tables] == ["sheet Sheet!A1:B21", "sheet Sheet!A22:B41", "sheet Sheet!A42:B51"]
    assert all(table.text.startswith("| part | price |") for table in tables)
    assert sum(table.text.count("| part ") for table in tables) == 3 + 50


def test_cells_are_bounded() -> None:
    with pytest.raises(DataError, match=r"more than 10 cells \(most_cells\)"):
        parse_bytes(_book([[1, 2, 3]] * 5), "big.xlsx", options={"xlsx": {"most_cells": 10}})


def test_a_cell_in_the_last_corner_costs_little() -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.active["XFD200000"] = "corner"
    out = io.BytesIO()
    book.save(out)
    document = parse_bytes(out.getvalue(), "corner.xlsx")
    assert "corner" in document.text and document.blocks[1].place.endswith("XFD200000")


def _book(rows: list[list[object]]) -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()
