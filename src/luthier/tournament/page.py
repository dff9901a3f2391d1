"""The board as one HTML page: everything inline, no script, nothing fetched, every text from the user escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.tournament import figures
from luthier.tournament.board import Board, Standing
from luthier.tournament.frontier import COSTS
from luthier.tournament.plots import Measured, Plot, plot
from luthier.tournament.slicing import slice_rows
from luthier.tournament.trials import picture

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "board.html.j2"
_COLORS = 8


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for name in (
        "score",
        "interval",
        "signed",
        "probability",
        "megabytes",
        "count",
        "milliseconds",
        "duration",
        "metric",
        "money",
        "tokens",
        "share",
    ):
        environment.filters[name] = getattr(figures, name)
    return environment.get_template(TEMPLATE)


def render(board: Board) -> str:
    """The page. It shows the board's data and nothing else, so equal boards give equal pages."""
    colors = {s.name: i % _COLORS for i, s in enumerate(board.standings)}
    second = (
        next((name for name in board.finished[0].scores if name != board.task["primary"]), None)
        if board.finished
        else None
    )
    return _template().render(
        board=board,
        colors=colors,
        primary=board.task["primary"],
        second=second,
        plots=_plots(board, colors),
        full_scale=_full_scale(board),
        budget=_budget(board.settings.get("budget")),
        priced="machine" in board.settings,
        searches=[picture(s, colors[s.name]) for s in board.standings if s.trials],
        slices=slice_rows(board),
        heat=_heat(board),
        settings={s.name: json.dumps(_configuration(s), indent=2, ensure_ascii=False) for s in board.standings},
        command=" ".join(_quoted(part) for part in board.task.get("command", ())),
        prompt=board.task["prompt"],
    )


def _plots(board: Board, colors: Mapping[str, int]) -> list[Plot]:
    metric = figures.metric(board.task["primary"])
    costs: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
        ("Score and latency", "one request, median", "latency", figures.milliseconds),
        ("Score and memory", "weights in memory", "memory", figures.megabytes),
        ("Score and trained parameters", "trained parameters", "trained parameters", figures.count),
        ("Score and price", "price of 1,000 requests", "price", figures.money),
    )
    return [
        plot(
            title,
            x_title,
            metric,
            [_measured(board, s, COSTS[cost](s), write, colors) for s in board.finished],
            write,
            board.frontiers.get(cost, ()),
        )
        for title, x_title, cost, write in costs
        if cost != "price" or any(s.price_per_1000 is not None for s in board.finished)
    ]


def _budget(budget: Mapping[str, Any] | None) -> str:
    """``10 min 00 s``, ``200,000 tokens``, or both."""
    if not budget:
        return ""
    parts = [figures.duration(budget["seconds"])] if budget.get("seconds") else []
    return " and ".join([*parts, *([f"{budget['tokens']:,} tokens"] if budget.get("tokens") else [])])


def _full_scale(board: Board) -> float:
    """What a full bar stands for: 1, or the highest bound where scores are of another scale."""
    return max([1.0, *(float(s.score["high"]) for s in board.finished)])


def _measured(
    board: Board, s: Standing, cost: float | None, write: Callable[[float], str], colors: Mapping[str, int]
) -> Measured:
    value, low, high = s.score["value"], s.score["low"], s.score["high"]
    told = "not known" if cost is None else "none" if cost == 0 else write(cost)
    title = f"{s.name} ({s.model}): {figures.score(value)} {figures.interval(low, high)}, {told}"
    return Measured(s.name, colors[s.name], cost, value, low, high, title, s.name == board.verdict.get("keep"))


def _heat(board: Board) -> list[dict[str, Any]]:
    """Rows of the per-label table: label, support, and each entrant's F1 with the class of its shade (0 to 9)."""
    labels = next((s.labels for s in board.finished if s.labels), {})
    rows = []
    for label, first in labels.items():
        cells = []
        for s in board.finished:
            figure = s.labels.get(label)
            f1 = None if figure is None or not first["support"] else figure["f1"]
            cells.append(
                {"f1": f1, "shade": 0 if f1 is None else min(int(f1 * 10), 9), "figure": figure, "name": s.name}
            )
        rows.append({"label": label, "support": int(first["support"]), "cells": cells})
    return rows


def _configuration(s: Standing) -> dict[str, Any]:
    return {
        "model": s.model,
        **s.settings,
        "answers as": s.target,
        "digests": dict(s.digests),
        "runs": {k: v for k, v in (("tune", s.tune_run), ("eval", s.eval_run)) if v},
    }


def _quoted(part: str) -> str:
    import shlex

    return shlex.quote(part)
