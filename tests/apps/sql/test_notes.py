from __future__ import annotations

from pathlib import Path

import pytest

from luthier.apps.sql.notes import check_notes, read_notes
from luthier.apps.sql.schema import Column, Schema, Table
from luthier.core.errors import InputError

SCHEMA = Schema((Table("orders", (Column("total"),)),))


def test_notes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.yaml"
    path.write_text("orders: sales\norders.total: in crowns\n", encoding="utf-8")
    assert read_notes(path) == {"orders": "sales", "orders.total": "in crowns"}
    path.write_text('{"orders": {"": "销售", "total": "单位:元"}}', encoding="utf-8")
    assert read_notes(path) == {"orders": "销售", "orders.total": "单位:元"}
    check_notes(read_notes(path), SCHEMA)


@pytest.mark.parametrize(
    ("notes", "said"),
    [({"orders": 3}, "in words"), ({"orders": " "}, "in words"), ({"orders": "x" * 501}, "at most 500")],
)
def test_bad_notes(notes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_notes(notes)


def test_notes_about_what_is_not_there() -> None:
    with pytest.raises(InputError, match=r"Did you mean 'orders.total'"):
        check_notes({"orders.totl": "x"}, SCHEMA)
    with pytest.raises(InputError, match="no such file"):
        read_notes("nosuch.yaml")
