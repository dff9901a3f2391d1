from __future__ import annotations

import datetime
import decimal
import json

from luthier.apps.sql.limits import Result
from luthier.apps.sql.table import json_rows, lines_text, markdown_table


def test_markdown_holds_whatever_the_cells_hold() -> None:
    text = markdown_table(Result(("a|b", "c"), (("x|y\n| z |", "```"), (None, "北京"))))
    assert text.splitlines() == ["| a\\|b | c |", "| --- | --- |", "| x\\|y \\| z \\| | ''' |", "|  | 北京 |"]
    assert markdown_table(Result(())) == ""


def test_what_is_left_out_is_said() -> None:
    rows = tuple((n,) for n in range(30))
    assert "(10 more rows)" in markdown_table(Result(("n",), rows), 20)
    assert "... 10 more rows" in lines_text(Result(("n",), rows), 20)
    assert "more rows than were read" in markdown_table(Result(("n",), rows, cut=True))


def test_rows_are_json() -> None:
    rows = json_rows(
        [(datetime.date(2026, 1, 2), decimal.Decimal("1.10"), float("nan"), float("inf"), None, 1, "x", True)]
    )
    assert rows == [["2026-01-02", "1.10", "nan", "inf", None, 1, "x", True]]
    json.dumps(rows, allow_nan=False)
