"""How the board's figures are written, the same in the verdict, the terminal and the page. What is not known is a dash."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.training.preflight import Errors

MINUS, DASH, NARROW = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{NARROW NO-BREAK SPACE}"


def score(value: float | None) -> str:
    """A score with two decimals, the second of which the interval seldom supports."""
    return DASH if value is None else f"{value:.2f}"


def interval(low: float, high: float) -> str:
    """The bounds in brackets."""
    return f"[{low:.2f}, {high:.2f}]"


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", MINUS)


def probability(value: float) -> str:
    """A p-value, never below what is worth telling."""
    if value < 0.001:
        return "p < 0.001"
    return f"p = {value:.3f}" if value < 0.01 else f"p = {value:.2f}"


def megabytes(value: float | None) -> str:
    """MB or GB of powers of ten."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    if value >= 1000:
        return f"{value / 1000:.1f} GB"
    return f"{value:.0f} MB" if value >= 10 else f"{value:.1f} MB" if value >= 1 else f"{value * 1000:.0f} kB"


def count(value: float | None) -> str:
    """A number of parameters: ``3.9 K``, ``22.7 M``."""
    if value is None:
        return DASH
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size * 0.9995:
            number = value / size
            return f"{number:.0f} {unit}" if number >= 99.5 else f"{number:.1f} {unit}"
    return f"{value:.0f}"


def milliseconds(seconds: float | None) -> str:
    """A latency."""
    if seconds is None:
        return DASH
    if seconds >= 1:
        return f"{seconds:.1f} s"
    if seconds < 0.0001:
        return "< 0.1 ms"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.00995 else f"{seconds * 1000:.1f} ms"


def duration(seconds: float | None) -> str:
    """A training time."""
    if seconds is None:
        return DASH
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    whole = round(seconds)
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def money(value: float | None) -> str:
    """A price; what is not known is said, because a dash could pass for nothing."""
    if value is None:
        return "unknown"
    if value == 0:
        return "0"
    return f"{value:.2f}" if value >= 0.095 else f"{value:.2g}"


def tokens(value: float | None) -> str:
    """Mean tokens a request."""
    return DASH if value is None else f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"


def share(value: float) -> str:
    """A part as a percentage."""
    return f"{100 * value:.0f}%"


def prediction_errors(errors: Errors | None) -> str:
    """How wrong earlier predictions were."""
    if errors is None:
        return "no earlier run to compare a prediction with"
    whose = "" if errors.same else " of other kinds"
    return (
        f"{errors.runs} earlier prediction{'' if errors.runs == 1 else 's'}{whose}: off by {share(errors.time)} in time, "
        f"{share(errors.memory)} in memory"
    )


def metric(name: str) -> str:
    """A scorer's name as people write it: ``macro F1``."""
    return name.replace("_", " ").replace(" f1", " F1")
