"""The picture of a scaling law: runs, fitted curves, and the line of the best use of compute; as a PNG, and in characters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.training.scaling_fit import Point

if TYPE_CHECKING:
    from luthier.training.scaling import Report

_GRID, _BEST = "#e6e9ee", "#d1495b"
_SIZES = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
_CURVE = 60


def draw(report: Report, path: Path) -> None:
    """Write the picture: loss over tokens for each size, and loss over compute with the best loss at each budget. Raises StoreError."""
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from luthier.store.home import write_atomic

    figure = Figure(figsize=(11, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    sizes = sorted({report.size_of(cell) for cell in report.cells})
    for place, size in enumerate(sizes):
        colour = _SIZES[round(place * (len(_SIZES) - 1) / max(1, len(sizes) - 1))]
        cells = sorted((cell for cell in report.cells if report.size_of(cell) == size), key=lambda cell: cell.tokens)
        label = f"{cells[0].size}: {size / 1e6:.3g}M"
        losses = [cell.loss for cell in cells]
        left.plot([cell.tokens for cell in cells], losses, "o", color=colour, label=label)
        right.plot([Point(size, c.tokens, c.loss).compute for c in cells], losses, "o", color=colour)
        if report.fit is not None and report.fit.law != "parameters":
            first, last = (pick(cell.tokens for cell in report.cells) for pick in (min, max))
            tokens = np.geomspace(first, 2 * last, _CURVE)
            curve = [report.fit.loss(size, float(d)) for d in tokens]
            left.plot(tokens, curve, color=colour, linewidth=1)
            right.plot([Point(size, float(d), 1).compute for d in tokens], curve, color=colour, linewidth=1)
    if report.fit is not None and report.fit.law == "parameters":
        line = np.geomspace(sizes[0], 2 * sizes[-1], _CURVE)
        tokens_of = report.cells[0].tokens
        compute = [Point(float(n), tokens_of, 1).compute for n in line]
        right.plot(compute, [report.fit.loss(float(n), tokens_of) for n in line], color=_BEST, linewidth=1)
    if report.optima:
        budgets, best = _best(report)
        right.plot(budgets, best, color=_BEST, linewidth=2, linestyle="--", label="best use of compute")
        right.legend(frameon=False)
    for axes, what in ((left, "training tokens"), (right, "compute, 6ND (FLOP)")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(what)
        axes.set_ylabel("held-out loss (nats a token)")
        axes.grid(color=_GRID, which="both")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        _plain_ticks(axes)
    left.legend(frameon=False, title="parameters")
    figure.suptitle(report.name, x=0.01, ha="left", fontweight="bold")
    content = BytesIO()
    figure.savefig(content, format="png")
    write_atomic(path, content.getvalue())


def _plain_ticks(axes: Any) -> None:
    """Losses as they are: 3.2, not 3.2 x 10^0."""
    from matplotlib.ticker import FormatStrFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%.3g"))
    axes.yaxis.set_minor_locator(MaxNLocator(1))


def _best(report: Report) -> tuple[list[float], list[float]]:
    """(compute, smallest loss) over the range of the runs and ten times beyond."""
    assert report.fit is not None
    compute = [point.compute for point in report.points()]
    budgets = np.geomspace(min(compute), 10 * max(compute), _CURVE)
    return [float(c) for c in budgets], [report.fit.optimum(float(c)).loss for c in budgets]


def text(report: Report, *, width: int = 80, height: int = 18, colour: bool = True) -> str:
    """Loss over compute in characters: runs as dots, the best use of compute as a line."""
    import math

    import plotext

    figure = plotext.figure
    figure.clear()
    figure.theme("clear")
    figure.plot_size(width, height)
    if report.optima:
        budgets, best = _best(report)
        line = figure.signal([math.log10(c) for c in budgets], best, marker="braille")
        line.lines()
        figure.draw(line)
    points = report.points()
    if points:
        dots = figure.signal([math.log10(p.compute) for p in points], [p.loss for p in points], marker="dot")
        figure.draw(dots)
    figure.title("held-out loss of the runs (dots)" + (", best use of compute (line)" if report.optima else ""))
    figure.label("log10 of compute, 6ND")
    drawn = str(figure.build())
    figure.clear()
    plain: str = plotext.uncolorize(drawn)
    return drawn if colour else "\n".join(row.rstrip() for row in plain.splitlines())
