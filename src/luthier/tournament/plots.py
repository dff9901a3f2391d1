"""Geometry of the board's plots, in SVG units: where axes, points, whiskers and labels go. The page's template draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 18.0, 16.0, 46.0
_CHARACTER, _LINE = 6.3, 13.0  # size of a label's letters at font-size 11.5
_NONE_BAND = 54.0  # width of the place for "none" on a logarithmic axis
_DECADE_STEPS = ((1,), (1, 3), (1, 2, 5))


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """One entrant in a plot. ``x, y`` its dot, ``low, high`` the ends of its whisker, ``label_x, label_y, anchor`` its name."""

    name: str
    color: int
    title: str
    x: float
    y: float
    low: float
    high: float
    label_x: float
    label_y: float
    anchor: str
    kept: bool


@dataclass(frozen=True)
class Plot:
    """One plot, ready to draw."""

    title: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    points: tuple[Point, ...]
    missing: tuple[str, ...]
    divider: float | None = None
    frontier: str = ""  # an SVG path: steps through the entrants that nobody beats at their cost
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Measured:
    """What a plot shows of one entrant; ``x`` None is not known."""

    name: str
    color: int
    x: float | None
    value: float
    low: float
    high: float
    title: str
    kept: bool


def plot(
    title: str,
    x_title: str,
    y_title: str,
    measured: Sequence[Measured],
    write: Callable[[float], str],
    frontier: Sequence[str] = (),
) -> Plot:
    """Scores with their intervals over a logarithmic cost; ``write`` makes the text of a cost. A cost of 0 has its own place.

    ``frontier`` names, cheapest first, the entrants that a line goes through.
    """
    known = [m for m in measured if m.x is not None]
    missing = tuple(m.name for m in measured if m.x is None)
    costs = [m.x for m in known if m.x is not None and m.x > 0]
    none = any(m.x == 0 for m in known)
    start = LEFT + (_NONE_BAND if none else 0.0)
    low, high = _decades(costs)
    y_low, y_high, y_step = _score_range(known)

    def across(cost: float) -> float:
        if cost <= 0:
            return LEFT + _NONE_BAND / 2
        share = (math.log10(cost) - low) / (high - low)
        return start + share * (WIDTH - RIGHT - start)

    def down(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - BOTTOM - TOP)

    dots = [
        (m, round(across(m.x or 0.0), 1), round(down(m.value), 1), round(down(m.low), 1), round(down(m.high), 1))
        for m in known
    ]
    labels = _labels([(m.name, x, y, y_l, y_h, 14.0 if m.kept else 10.0) for m, x, y, y_l, y_h in dots])
    points = tuple(
        Point(m.name, m.color, m.title, x, y, y_l, y_h, *label, m.kept)
        for (m, x, y, y_l, y_h), label in zip(dots, labels, strict=True)
    )
    x_ticks = [Tick(round(across(v), 1), write(v).replace(".0 ", " ")) for v in _ticks(low, high)] if costs else []
    if none:
        x_ticks.insert(0, Tick(LEFT + _NONE_BAND / 2, "none"))
    steps = range(round(y_low / y_step), round(y_high / y_step) + 1)
    y_ticks = tuple(Tick(round(down(i * y_step), 1), f"{i * y_step:.2f}".rstrip("0").rstrip(".") or "0") for i in steps)
    divider = start if none and costs else None
    steps_through = _steps([p for name in frontier for p in points if p.name == name])
    return Plot(title, x_title, y_title, tuple(x_ticks), y_ticks, points, missing, divider, steps_through)


def _steps(points: Sequence[Point]) -> str:
    """A path that rises only where an entrant is: what score a cost buys. It needs two points to say anything."""
    if len(points) < 2:
        return ""
    first, *rest = points
    return f"M{first.x} {first.y}" + "".join(f"H{p.x}V{p.y}" for p in rest)


def _decades(costs: Sequence[float]) -> tuple[float, float]:
    """Bounds of the axis in powers of ten, with room beside the outermost dots."""
    if not costs:
        return 0.0, 1.0
    low, high = math.log10(min(costs)), math.log10(max(costs))
    room = max(0.12, 0.08 * (high - low), (0.5 - (high - low)) / 2)
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis: as many as fit well."""
    for steps in _DECADE_STEPS if high - low > 1.2 else _DECADE_STEPS[::-1]:
        found = [
            step * 10.0**power
            for power in range(math.floor(low), math.ceil(high) + 1)
            for step in steps
            if low <= math.log10(step * 10.0**power) <= high
        ]
        if 2 <= len(found) <= 6:
            return found
    span = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
    return span[:: max(1, math.ceil(len(span) / 5))] or [10.0 ** ((low + high) / 2)]


def _score_range(measured: Sequence[Measured]) -> tuple[float, float, float]:
    """Bounds and step of the score axis: around all intervals, at least a fifth of the scale, within what scores can be."""
    low = min((m.low for m in measured), default=0.0)
    high = max((m.high for m in measured), default=1.0)
    if high - low < 0.2:
        middle = (low + high) / 2
        low, high = middle - 0.1, middle + 0.1
    step = next(
        s for s in (0.05, 0.1, 0.2, 0.5, 1.0, 10.0 ** math.ceil(math.log10(high - low))) if (high - low) / s <= 6
    )
    bottom, top = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    if min((m.low for m in measured), default=0.0) >= 0:
        bottom = max(bottom, 0.0)
    return bottom, max(top, bottom + step), step


_Box = tuple[float, float, float, float]


def _labels(dots: Sequence[tuple[str, float, float, float, float, float]]) -> list[tuple[float, float, str]]:
    """A place for each name, ``gap`` beside its dot, where it covers neither dots nor whiskers nor other names, if there is one."""
    taken: list[_Box] = [(x - 7, min(y_high, y - 7), x + 7, max(y_low, y + 7)) for _, x, y, y_low, y_high, _ in dots]
    out: list[tuple[float, float, str]] = []
    for name, x, y, y_low, y_high, gap in dots:
        width = len(name) * _CHARACTER
        places = [
            place
            for rise in (0.0, -_LINE, _LINE, -2 * _LINE, 2 * _LINE)
            for place in ((x + gap, y + 4 + rise, "start"), (x - gap, y + 4 + rise, "end"))
        ]
        places += [(x, y_high - 6, "middle"), (x, y_low + 14, "middle")]
        best = min(places, key=lambda place: (_overlap(_box(place, width), taken), places.index(place)))
        taken.append(_box(best, width))
        out.append((round(best[0], 1), round(best[1], 1), best[2]))
    return out


def _box(place: tuple[float, float, str], width: float) -> _Box:
    x, y, anchor = place
    left = x if anchor == "start" else x - width if anchor == "end" else x - width / 2
    return left, y - 10, left + width, y + 3


def _overlap(box: _Box, taken: Sequence[_Box]) -> float:
    """Area of ``box`` that is covered or outside the plot."""

    def common(other: _Box) -> float:
        wide = min(box[2], other[2]) - max(box[0], other[0])
        tall = min(box[3], other[3]) - max(box[1], other[1])
        return max(wide, 0.0) * max(tall, 0.0)

    area = (box[2] - box[0]) * (box[3] - box[1])
    inside = common((LEFT + 2, 2.0, WIDTH - 2, HEIGHT - BOTTOM - 2))
    return 2 * (area - inside) + sum(common(other) for other in taken)
