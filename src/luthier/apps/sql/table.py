"""Results as text: for models, for Markdown, for JSON."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Sequence
from typing import Any

from luthier.apps.sql.limits import Result

_LONGEST = 200


def lines_text(result: Result, most: int | None = None) -> str:
    """The rows as tab-separated lines under the names of the columns, in which nothing can close a mark."""
    rows = result.rows if most is None else result.rows[:most]
    lines = ["\t".join(map(_cell, result.columns)), *("\t".join(map(_cell, row)) for row in rows)]
    left = len(result.rows) - len(rows)
    return "\n".join([*lines, f"... {left} more rows"] if left > 0 else lines)


def markdown_table(result: Result, most: int | None = None) -> str:
    """A table in Markdown; "" without columns."""
    if not result.columns:
        return ""
    rows = result.rows if most is None else result.rows[:most]
    lines = [_markdown_row(result.columns), _markdown_row(["---"] * len(result.columns))]
    lines += [_markdown_row([_shown(value) for value in row]) for row in rows]
    left = len(result.rows) - len(rows)
    more = f"\n\n({left} more rows)" if left else ""
    return "\n".join(lines) + more + ("\n\n(there are more rows than were read)" if result.cut else "")


def json_rows(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The rows as JSON: times in ISO 8601, decimals as text (they are exact), numbers that JSON does not have as text."""
    return [[_json(value) for value in row] for row in rows]


def _json(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.datetime | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


def _markdown_row(cells: Sequence[str]) -> str:
    safe = (
        " ".join(cell.split())[:_LONGEST].replace("\\", "\\\\").replace("|", "\\|").replace("`", "'") for cell in cells
    )
    return "| " + " | ".join(safe) + " |"


def _cell(value: Any) -> str:
    return " ".join(_shown(value).split())[:_LONGEST].replace("<", "‹").replace(">", "›")
