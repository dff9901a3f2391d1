from __future__ import annotations

import datetime
import decimal
from pathlib import Path

import pytest

from luthier.apps.sql.chart import bars, draw, suits
from luthier.apps.sql.limits import Result
from luthier.core.errors import InputError, StoreError

CITIES = Result(("city", "total"), (("Oslo", 10.0), ("Bergen", 5.0), ("北京", None)))
MONTHS = Result(("month", "n"), (("2026-02", 4), ("2026-01", 3), ("2026-03", 9)))


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (CITIES, ("bar", 0, 1)),
        (MONTHS, ("line", 0, 1)),
        (
            Result(
                ("day", "n"),
                ((datetime.date(2026, 1, 1), decimal.Decimal("1.5")), (datetime.date(2026, 1, 2), decimal.Decimal(2))),
            ),
            ("line", 0, 1),
        ),
        (Result(("year", "n"), ((2001, 4), (2002, 5), (2003, 1))), ("line", 0, 1)),
        (Result(("height", "weight"), ((1.5, 50), (1.7, 60), (1.8, 80))), ("scatter", 0, 1)),
        (Result(("customer_id", "name"), ((1, "a"), (2, "b"))), None),
        (Result(("n",), ((1,), (2,))), None),
        (Result(("city", "total"), (("Oslo", 1),)), None),
        (Result(("city", "total"), (("Oslo", 1), ("Oslo", 2))), None),
        (Result(("a", "b"), (("x", "y"), ("z", "w"))), None),
        (Result(("name", "n"), tuple((str(n) + "x", n) for n in range(31))), None),
    ],
)
def test_what_suits(result: Result, kind: object) -> None:
    assert suits(result) == kind


def test_pictures(tmp_path: Path) -> None:
    png, svg = tmp_path / "a.png", tmp_path / "b.SVG"
    assert draw(CITIES, png, "Total by city: $5 of $x_{") == png
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    draw(CITIES, svg, "各城市的总额")
    text = svg.read_text(encoding="utf-8")
    assert "<svg" in text and "北京" in text and "各城市的总额" in text
    draw(MONTHS, svg)
    drawn = svg.read_text(encoding="utf-8")
    assert drawn.index("2026-01") < drawn.index("2026-02") < drawn.index("2026-03")


def test_no_picture(tmp_path: Path) -> None:
    assert draw(Result(("n",), ((1,),)), tmp_path / "a.png") is None and not (tmp_path / "a.png").exists()
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        draw(CITIES, tmp_path / "a.exe")
    with pytest.raises(StoreError, match="cannot be written"):
        draw(CITIES, tmp_path / "nosuch" / "a.png")


def test_bars_in_the_terminal() -> None:
    lines = bars(CITIES, width=8)
    assert lines == ["  Oslo ████████ 10.0", "Bergen ████ 5.0", "  北京  None"]
    assert bars(Result(("h", "w"), ((1.5, 2.5), (2.5, 3.5)))) == []
