"""A picture of a result, when one suits: bars for categories, a line over time, points for two numbers."""

from __future__ import annotations

import datetime
import decimal
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from luthier.apps.sql.limits import Result
from luthier.core.errors import InputError, StoreError

Kind = Literal["bar", "line", "scatter"]
MOST_BARS = 30
SUFFIXES = (".png", ".svg")
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2}.*)?)?")
_KEY = re.compile(r"(?:^|_)id$|(?<=[a-z])(?:Id|ID)$|编号$", re.IGNORECASE)
_COLOUR = "#3366aa"
_FONTS = (
    "Noto Sans CJK SC", "Source Han Sans SC", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "DejaVu Sans",
)  # fmt: skip


def suits(result: Result) -> tuple[Kind, int, int] | None:
    """(kind, column for x, column for y), or None when a table says more."""
    if not 2 <= len(result.rows) <= 5000 or len(result.columns) < 2:
        return None
    kinds = [_kind([row[at] for row in result.rows]) for at in range(len(result.columns))]
    numbers = [at for at, kind in enumerate(kinds) if kind == "number" and not _KEY.search(result.columns[at])]
    dates = [at for at, kind in enumerate(kinds) if kind == "date"]
    texts = [at for at, kind in enumerate(kinds) if kind == "text"]
    if not numbers:
        return None
    if dates and len({row[dates[0]] for row in result.rows}) == len(result.rows):
        return "line", dates[0], numbers[0]
    if texts and len({row[texts[0]] for row in result.rows}) == len(result.rows) <= MOST_BARS:
        return "bar", texts[0], numbers[-1]
    if len(numbers) >= 2 and not texts and not dates:
        return "scatter", numbers[0], numbers[1]
    return None


def check_path(path: Path) -> None:
    """Raise InputError unless a picture can be written as ``path`` says."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"chart must end in {' or '.join(SUFFIXES)}; got {path.name!r}")


def draw(result: Result, path: Path, title: str = "") -> Path | None:
    """Write the picture that suits as PNG or SVG (by the suffix of ``path``); None when none does.

    Raises InputError for another suffix, StoreError when it cannot be written.
    """
    check_path(path)
    found = suits(result)
    if found is None:
        return None
    import matplotlib as mpl
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    known = set(font_manager.get_font_names())
    fonts = [name for name in _FONTS if name in known]
    # letters stay letters in an SVG: whoever looks at it has fonts of their own
    with mpl.rc_context({"font.family": fonts, "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        _plot(figure.subplots(), result, *found, title)
        try:
            figure.savefig(path, dpi=144)
        except OSError as error:
            raise StoreError(f"the chart cannot be written: {error}") from error
    return path


def _plot(axes: Any, result: Result, kind: Kind, x: int, y: int, title: str) -> None:
    across, up = [row[x] for row in result.rows], [_number(row[y]) for row in result.rows]
    names = [_plain(result.columns[x]), _plain(result.columns[y])]
    if kind == "bar":
        axes.barh(range(len(up)), up[::-1], color=_COLOUR)
        axes.set_yticks(range(len(up)), [_plain(each) for each in across[::-1]])
        axes.set_xlabel(names[1])
    elif kind == "line":
        order = sorted(range(len(across)), key=lambda at: str(across[at]))
        axes.plot([str(across[at]) for at in order], [up[at] for at in order], marker="o", color=_COLOUR)
        axes.tick_params(axis="x", rotation=45)
        step = max(len(order) // 12, 1)
        axes.set_xticks(range(0, len(order), step))
    else:
        axes.scatter([_number(each) for each in across], up, s=14, color=_COLOUR)
    if kind != "bar":
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
    axes.set_title(_plain(title)[:90])
    axes.spines[["top", "right"]].set_visible(False)


def bars(result: Result, width: int = 40) -> list[str]:
    """Bars made of characters, a line each; empty when bars do not suit."""
    found = suits(result)
    if found is None or found[0] == "scatter" or len(result.rows) > MOST_BARS:
        return []
    _, x, y = found
    labels = [" ".join(str(row[x]).split())[:24] for row in result.rows]
    values = [_number(row[y]) for row in result.rows]
    most = max(map(abs, values)) or 1.0
    widest = max(map(_wide, labels))
    lines = []
    for label, value, row in zip(labels, values, result.rows, strict=True):
        eighths = round(8 * width * abs(value) / most)
        bar = "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
        lines.append(f"{' ' * (widest - _wide(label))}{label} {bar} {row[y]}")
    return lines


def _wide(text: str) -> int:
    """Cells of a terminal: Chinese characters take two."""
    return sum(2 if "\u2e80" <= each <= "\uffee" else 1 for each in text)


def _plain(value: object) -> str:
    return " ".join(str(value).split())[:60].replace("$", r"\$")


def _number(value: Any) -> float:
    return 0.0 if value is None else float(value)


def _kind(values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    if all(isinstance(value, datetime.date | datetime.datetime) for value in known):
        return "date"
    if all(isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool) for value in known):
        whole = all(float(value).is_integer() and 1800 <= value <= 2100 for value in known)
        return "date" if whole and len(set(known)) == len(known) > 2 else "number"
    if all(isinstance(value, str) and _DATE.fullmatch(value) for value in known):
        return "date"
    return "text"
