"""Pictures of traffic over time: requests and errors, seconds to the first token and in all; as characters or as a PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from luthier.core.errors import InputError
from luthier.store.trace_query import Measured
from luthier.store.trace_stats import TraceStats, summarise

MOST_BINS = 72
_STEPS_S = (60, 300, 900, 3600, 4 * 3600, 86_400, 7 * 86_400)
_GRID = "#d7d7d7"

Bins = list[tuple[datetime, TraceStats]]


def bins_of(rows: Sequence[Measured]) -> Bins:
    """Figures of equal stretches of time, at most ``MOST_BINS``, those without a request left out."""
    times = [datetime.fromisoformat(row.created_at) for row in rows]
    if not times:
        return []
    span = (max(times) - min(times)).total_seconds()
    step = next((each for each in _STEPS_S if span / each <= MOST_BINS), _STEPS_S[-1])
    groups: dict[int, list[Measured]] = {}
    for at, row in zip(times, rows, strict=True):
        groups.setdefault(int(at.timestamp()) // step, []).append(row)
    zero = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    return [(zero + timedelta(seconds=number * step), summarise(groups[number])) for number in sorted(groups)]


def text(bins: Bins, *, width: int = 80, height: int = 12, colour: bool = True) -> str:
    """Median and 95% of the seconds in all, over time, in characters."""
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.theme("clear")
    figure.plot_size(width, height)
    start = bins[0][0] if bins else None
    for place, marker in ((0, "braille"), (1, "dot")):
        points = [
            ((at - start).total_seconds() / 3600, stats.latency_s[place])
            for at, stats in bins
            if stats.latency_s is not None and start is not None
        ]
        if points:
            line = figure.signal([x for x, _ in points], [y for _, y in points], marker=marker)
            if marker == "braille":
                line.lines()
            figure.draw(line)
    figure.title("seconds an answer: median (line), 95% (dots)")
    figure.label(f"hours after {start:%Y-%m-%d %H:%M} UTC" if start else "")
    drawn = str(figure.build())
    figure.clear()
    plain: str = plotext.uncolorize(drawn)
    return drawn if colour else "\n".join(line.rstrip() for line in plain.splitlines())


def save(bins: Bins, path: Path) -> None:
    """Three panels over time as a PNG: requests and errors, seconds to the first token, seconds in all. Raises InputError."""
    import matplotlib

    if not bins:
        raise InputError("there is no trace to draw; take another filter")
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), dpi=120, layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    at = [begin for begin, _ in bins]
    panels[0].plot(at, [stats.requests for _, stats in bins], color="#2a6fbb", label="requests")
    panels[0].plot(at, [stats.errors for _, stats in bins], color="#c0392b", label="errors")
    panels[0].set_ylabel("requests")
    for axes, name, take in ((panels[1], "to the first token", _first), (panels[2], "in all", _whole)):
        for place, label, style in ((0, "median", "-"), (1, "95%", "--"), (2, "99%", ":")):
            points = [(begin, times[place]) for begin, stats in bins if (times := take(stats)) is not None]
            axes.plot([x for x, _ in points], [y for _, y in points], style, color="#2a6fbb", label=label)
        axes.set_ylabel(f"seconds {name}")
        axes.set_ylim(bottom=0)
    for axes in panels:
        axes.grid(color=_GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left")
    figure.autofmt_xdate()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"png: cannot write {path}: {error}") from error


_Take = Callable[[TraceStats], "tuple[float, ...] | None"]


def _first(stats: TraceStats) -> tuple[float, ...] | None:
    return stats.ttft_s


def _whole(stats: TraceStats) -> tuple[float, ...] | None:
    return stats.latency_s


def waterfall(
    steps: Sequence[tuple[str, float, float, float]], whole_s: float, *, width: int = 48
) -> list[tuple[str, str, str]]:
    """(name, bar, seconds) of each step (name, begin, when its work began, end: seconds). What was waited is ``·``, what was worked ``█``."""
    scale = width / max(whole_s, 1e-9)
    out = []
    for name, begin, work, end in steps:
        first, middle, last = (min(width, round(at * scale)) for at in (begin, work, end))
        bar = " " * first + "·" * (middle - first) + "█" * max(last - middle, 0 if end == begin else 1)
        out.append(
            (
                name,
                (bar or " " * min(first, width - 1) + "▏")[:width]
                if end > begin
                else " " * min(first, width - 1) + "▏",
                f"{end - begin:.3f}",
            )
        )
    return out


def steps_of(details: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """The steps of a trace in the order in which they began: attempts, and what guardrails, caches and routes said when."""
    out = []
    for said in details.get("attempts", ()):
        begin = float(said.get("began_s", 0.0))
        end = begin + float(said.get("took_s", 0.0))
        error = said.get("error")
        note = " (left)" if error == "left" else " failed" if error else ""
        out.append((f"{said.get('model', '')}{note}", begin, min(end, begin + float(said.get("waited_s", 0.0))), end))
    for layer, saids in details.items():
        if layer in ("attempts", "error") or not isinstance(saids, list):
            continue
        for said in saids:
            if isinstance(said, dict) and isinstance(said.get("at_s"), int | float):
                end = float(said["at_s"])
                begin = max(0.0, end - float(said.get("took_s") or 0.0))
                name = next((str(said[key]) for key in ("name", "target", "found", "action") if said.get(key)), "")
                out.append((f"{layer} {name}".strip(), begin, begin, end))
    return sorted(out, key=lambda step: (step[1], step[3]))
