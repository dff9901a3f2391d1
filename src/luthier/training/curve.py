"""The loss curve of a run: a PNG beside its metrics, and the same in characters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TRAIN, _VALIDATION, _RATE, _GRID = "#2f6f8f", "#d1495b", "#8d99ae", "#e6e9ee"
_REWARD = "#3a7d44"
_SMOOTH = 0.9


def _series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the records that hold a finite ``name``."""
    points = [(r["step"], r[name]) for r in records if name in r and "step" in r and math.isfinite(r[name])]
    return [float(step) for step, _ in points], [float(value) for _, value in points]


def _earned(records: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """(steps, mean rewards) of the answers that the model sampled; a reward model's own metric of that name is another thing."""
    return _series([record for record in records if "answer_tokens" in record], "reward")


def smooth(values: Sequence[float], weight: float = _SMOOTH) -> list[float]:
    """Exponential moving average with the start corrected for bias (Kingma and Ba 2015, section 3)."""
    out, average = [], 0.0
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        out.append(average / (1 - weight**count))
    return out


def draw(records: Sequence[Mapping[str, Any]], path: Path, *, title: str = "") -> None:
    """Write the loss over steps (raw and smoothed), validation, and the learning rate to a PNG; where answers earned rewards, these in a
    picture of their own above. Raises StoreError."""
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from luthier.store.home import write_atomic

    steps, losses = _series(records, "loss")
    earned = _earned(records)
    figure = Figure(figsize=(8, 7.5 if earned[0] else 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    if earned[0]:
        above, axes = figure.subplots(2, 1, sharex=True)
        _draw_rewards(above, earned, _series(records, "validation_reward"), title)
        title = ""
    else:
        axes = figure.subplots()
    axes.plot(steps, losses, color=_TRAIN, alpha=0.25, linewidth=1)
    axes.plot(steps, smooth(losses), color=_TRAIN, linewidth=2, label="training loss")
    at, validated = _series(records, "validation_loss")
    if at:
        axes.plot(at, validated, color=_VALIDATION, marker="o", markersize=5, linewidth=1.5, label="validation loss")
    rate_steps, rates = _series(records, "learning_rate")
    right = axes.twinx()
    right.plot(rate_steps, rates, color=_RATE, linewidth=1, linestyle=":", label="learning rate")
    right.set_ylabel("learning rate", color=_RATE)
    right.tick_params(axis="y", colors=_RATE)
    right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    for frame in (axes, right):
        frame.spines[["top"]].set_visible(False)
    lines = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False, loc="upper right")
    content = BytesIO()
    figure.savefig(content, format="png")
    write_atomic(path, content.getvalue())


def _draw_rewards(
    axes: Any, earned: tuple[list[float], list[float]], validated: tuple[list[float], list[float]], title: str
) -> None:
    """Mean reward of each step's answers (raw and smoothed), and of the validations'."""
    steps, rewards = earned
    axes.plot(steps, rewards, color=_REWARD, alpha=0.25, linewidth=1)
    axes.plot(steps, smooth(rewards), color=_REWARD, linewidth=2, label="reward")
    if validated[0]:
        axes.plot(*validated, color=_VALIDATION, marker="o", markersize=5, linewidth=1.5, label="validation reward")
    axes.set_ylabel("reward")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")


def text(records: Sequence[Mapping[str, Any]], *, width: int = 80, height: int = 16, colour: bool = True) -> str:
    """The smoothed loss and the validation losses as a picture of ``width`` x ``height`` characters; rewards instead, where answers earned
    them: the loss of a policy says little."""
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.theme("clear")
    figure.plot_size(width, height)
    steps, rewards = _earned(records)
    what, losses = "reward", rewards
    if not steps:
        what, (steps, losses) = "loss", _series(records, "loss")
    if steps:
        line = figure.signal(steps, smooth(losses), marker="braille")
        line.lines()
        figure.draw(line)
    at, validated = _series(records, f"validation_{what}")
    if at:
        dots = figure.signal(at, validated, marker="dot")
        figure.draw(dots)
    figure.title(f"training {what} (line)" + (f", validation {what} (dots)" if at else ""))
    figure.label("step")
    drawn = str(figure.build())
    figure.clear()
    plain: str = plotext.uncolorize(drawn)
    return drawn if colour else "\n".join(line.rstrip() for line in plain.splitlines())
