"""What a model that learns one task after another keeps of the earlier ones.

R[i][j] is the score on task j after the model learned task i. With T tasks learned, and for scores where more is better:

    average score      1/T sum over j of R[T][j]                                     Lopez-Paz and Ranzato 2017, equation 2
    backward transfer  1/(T-1) sum over j<T of R[T][j] - R[j][j]                     the same, equation 3
    forgetting         1/(T-1) sum over j<T of max over j<=l<T of R[l][j] - R[T][j]  Chaudhry et al. 2018, equation 3
    learning           1/T sum over j of R[j][j], how well each was learned in its turn

Where less is better (perplexity), backward transfer and forgetting have the other sign, so that forgetting above 0 is always a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from luthier.core.errors import InputError


@dataclass(frozen=True)
class Forgetting:
    """The figures after the last row; ``backward_transfer`` and ``forgetting`` are None after one task. ``by_task`` is the forgetting of each
    earlier task, in their order."""

    average: float
    learning: float
    backward_transfer: float | None
    forgetting: float | None
    by_task: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def forgetting(scores: Sequence[Sequence[float]], *, lower_is_better: bool = False) -> Forgetting:
    """The figures of a lower triangle: row i holds R[i][0] to R[i][i]. Raises InputError for another shape."""
    if not scores or any(len(row) != place + 1 for place, row in enumerate(scores)):
        raise InputError(f"row i must hold i + 1 scores; got rows of {[len(row) for row in scores]}")
    last, sign = scores[-1], -1.0 if lower_is_better else 1.0
    learned = [row[-1] for row in scores]
    earlier = range(len(scores) - 1)
    best = [max(sign * scores[at][task] for at in range(task, len(scores) - 1)) for task in earlier]
    lost = tuple(best[task] - sign * last[task] for task in earlier)
    moved = [sign * (last[task] - learned[task]) for task in earlier]
    return Forgetting(fmean(last), fmean(learned), fmean(moved) if moved else None, fmean(lost) if lost else None, lost)


def draw(scores: Sequence[Sequence[float]], tasks: Sequence[str], path: Path, *, title: str = "") -> None:
    """Write the triangle as a heat map to a PNG: a row for each step, a column for each task. Raises StoreError."""
    from io import BytesIO

    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from luthier.store.home import write_atomic

    count = len(tasks)
    grid = np.full((len(scores), count), np.nan)
    for at, row in enumerate(scores):
        grid[at, : len(row)] = row
    figure = Figure(figsize=(2.4 + 1.1 * count, 1.6 + 0.7 * len(scores)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    bounds = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1.0)
    axes.imshow(grid, cmap="Blues", vmin=bounds[0], vmax=bounds[1], aspect="auto")
    middle = sum(bounds) / 2
    for at, row in enumerate(scores):
        for task, value in enumerate(row):
            colour = "white" if value > middle else "#223344"
            axes.text(task, at, f"{value:.3f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(count), tasks, rotation=30, ha="right")
    axes.set_yticks(range(len(scores)), [f"after {name}" for name in tasks[: len(scores)]])
    axes.set_xlabel("scored on")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    held = BytesIO()
    figure.savefig(held, format="png")
    write_atomic(path, held.getvalue())
