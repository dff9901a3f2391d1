"""The picture of a search: the validation curve of every trial, and a line a trial with its settings. The page's template draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.tournament.board import Standing
from luthier.tournament.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Tick
from luthier.tournament.seeds import metric_falls

_SHOWN = 40  # trials in the table; all of them are in board.json


@dataclass(frozen=True)
class Curve:
    """One trial: an SVG path, its dots, its state, and what hovering says."""

    path: str
    dots: tuple[tuple[float, float], ...]
    state: str
    best: bool
    title: str


@dataclass(frozen=True)
class Picture:
    """A search, ready to draw. ``rows`` are (number, settings, state, value, seconds, best)."""

    name: str
    color: int
    metric: str
    summary: str
    curves: tuple[Curve, ...]
    y_ticks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: int
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def picture(s: Standing, color: int) -> Picture:
    """The trials of one entrant. Values far worse than the others would flatten them: the axis ends at their 90th percentile."""
    metric = _metric(s)
    falls = metric_falls(metric)
    best = _best(s.trials, falls)
    values = sorted((float(v) for t in s.trials for _, v in t["curve"]), reverse=not falls)
    kept = values[: max(1, round(0.9 * len(values)))] or [0.0, 1.0]
    low, high = min(kept), max(kept)
    room = 0.06 * (high - low) or 0.05
    low, high = low - room, high + room

    def across(share: float) -> float:
        return round(LEFT + share * (WIDTH - RIGHT - LEFT), 1)

    def down(value: float) -> float:
        at = HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP)
        return round(min(max(at, TOP), HEIGHT - BOTTOM), 1)

    curves = [_curve(t, t["number"] == best, [(across(x), down(y)) for x, y in t["curve"]]) for t in s.trials]
    steps = [low + room + i * (high - low - 2 * room) / 4 for i in range(5)]
    states = {state: sum(t["state"] == state for t in s.trials) for state in ("done", "pruned", "failed")}
    told = ", ".join(f"{count} {_SAID[state]}" for state, count in states.items() if count)
    return Picture(
        s.name,
        color,
        metric.removeprefix("validation_"),
        f"{len(s.trials)} trials: {told}",
        tuple(sorted(curves, key=lambda c: c.best)),
        tuple(Tick(down(v), f"{v:.3g}") for v in steps),
        tuple(Tick(across(x), f"{round(100 * x)}%") for x in (0.0, 0.25, 0.5, 0.75, 1.0)),
        tuple(_row(t, t["number"] == best) for t in s.trials[:_SHOWN]),
        max(len(s.trials) - _SHOWN, 0),
    )


_SAID = {"done": "finished", "pruned": "given up early", "failed": "failed"}


def _metric(s: Standing) -> str:
    search = s.settings.get("search") or {}
    return str(search.get("metric") or s.settings.get("train", {}).get("metric", "validation_loss"))


def _best(trials: Sequence[Mapping[str, Any]], falls: bool) -> int | None:
    done = [t for t in trials if t["state"] == "done" and t["value"] is not None]
    sign = 1.0 if falls else -1.0
    return min(done, key=lambda t: (sign * t["value"], t["number"]))["number"] if done else None


def settings_text(params: Mapping[str, Any]) -> str:
    """``learning rate 0.0003, rank 8``: the settings without their sections."""
    return ", ".join(
        f"{key.split('.', 1)[-1].replace('_', ' ')} {value:.3g}"
        if isinstance(value, float)
        else f"{key.split('.', 1)[-1].replace('_', ' ')} {value}"
        for key, value in params.items()
    )


def _curve(trial: Mapping[str, Any], best: bool, dots: Sequence[tuple[float, float]]) -> Curve:
    path = "M" + "L".join(f"{x} {y}" for x, y in dots) if len(dots) > 1 else ""
    value = "" if trial["value"] is None else f": {trial['value']:.4g}"
    title = f"trial {trial['number'] + 1}, {settings_text(trial['params'])}{value} ({_SAID[trial['state']]})"
    return Curve(path, tuple(dots), trial["state"], best, title)


def _row(trial: Mapping[str, Any], best: bool) -> tuple[Any, ...]:
    value = "" if trial["value"] is None else f"{trial['value']:.4g}"
    said = _SAID[trial["state"]] + (f": {trial['reason']}" if trial["state"] == "failed" else "")
    return (trial["number"] + 1, settings_text(trial["params"]), said, value, trial["seconds"], best)
