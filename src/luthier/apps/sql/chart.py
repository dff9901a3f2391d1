"""A picture of a result, when one suits: bars for categories, a line over time, points for two numbers."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any, Literal

from luthier.apps.sql.connect import Result

Kind = Literal["bar", "line", "scatter"]
MOST_BARS = 30
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2}.*)?)?")


def suits(result: Result) -> tuple[Kind, int, int] | None:
    """(kind, column for x, column for y), or None when a table says more."""
    if not 2 <= len(result.rows) <= 5000 or len(result.columns) < 2:
        return None
    kinds = [_kind([row[at] for row in result.rows]) for at in range(len(result.columns))]
    numbers = [at for at, kind in enumerate(kinds) if kind == "number"]
    if not numbers:
        return None
    dates = [at for at, kind in enumerate(kinds) if kind == "date"]
    texts = [at for at, kind in enumerate(kinds) if kind == "text"]
    if dates:
        y = next((at for at in numbers if at not in dates), None)
        return ("line", dates[0], y) if y is not None else None
    if texts and len({row[texts[0]] for row in result.rows}) == len(result.rows) <= MOST_BARS:
        return "bar", texts[0], numbers[-1]
    if len(numbers) >= 2 and not texts:
        return "scatter", numbers[0], numbers[1]
    return None


def draw(result: Result, path: Path, title: str = "") -> Path | None:
    """Write the picture that suits as PNG or SVG (by the suffix of ``path``); None when none does."""
    found = suits(result)
    if found is None:
        return None
    from matplotlib.figure import Figure

    kind, x, y = found
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    across, up = [row[x] for row in result.rows], [float(row[y] or 0) for row in result.rows]
    if kind == "bar":
        labels = [str(each) for each in across]
        axes.barh(labels[::-1], up[::-1], color="#3366aa")
        axes.set_xlabel(result.columns[y])
    elif kind == "line":
        order = sorted(range(len(across)), key=lambda at: str(across[at]))
        axes.plot([str(across[at]) for at in order], [up[at] for at in order], marker="o", color="#3366aa")
        axes.tick_params(axis="x", rotation=45)
        axes.set_xlabel(result.columns[x])
        axes.set_ylabel(result.columns[y])
    else:
        axes.scatter([float(each or 0) for each in across], up, s=14, color="#3366aa")
        axes.set_xlabel(result.columns[x])
        axes.set_ylabel(result.columns[y])
    axes.set_title(title[:90])
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=144)
    return path


def _kind(values: list[Any]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    if all(isinstance(value, datetime.date | datetime.datetime) for value in known):
        return "date"
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        whole = all(float(value).is_integer() and 1800 <= value <= 2100 for value in known)
        return "date" if whole and len(set(known)) == len(known) > 2 else "number"
    if all(isinstance(value, str) and _DATE.fullmatch(value) for value in known):
        return "date"
    return "text"
