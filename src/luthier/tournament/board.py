"""The board: what each entrant scored and cost, how they compare, and everything needed to do it again. Plain data, saved as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from luthier.core.errors import StoreError
from luthier.core.task import Task
from luthier.evaluation.result import EvalResult
from luthier.store.home import write_atomic
from luthier.tournament.seeds import compare_entrants

BOARD_JSON = "board.json"
BOARD_HTML = "board.html"


@dataclass(frozen=True)
class Standing:
    """One entrant on the board.

    ``score`` is the primary one with ``low`` and ``high``; ``scores`` all. Sizes are MB of 10^6 bytes: ``weights_mb`` what answering
    holds in memory, ``artifact_mb`` what training added to the disk, ``base_mb`` the base model. Times are seconds, latency of single
    requests. ``trainable_parameters`` is 0 when nothing was trained. What is not known is None.
    """

    name: str
    way: str
    model: str
    status: Literal["done", "failed"]
    rank: int = 0
    reason: str = ""
    score: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    confused: Sequence[Sequence[Any]] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    trainable_parameters: int | None = 0
    total_parameters: int | None = None
    train_s: float | None = None
    train_peak_mb: float | None = None
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    weights_mb: float | None = None
    base_mb: float | None = None
    artifact_mb: float | None = None
    serving: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    tune_run: str = ""
    eval_run: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    seeds: Sequence[Mapping[str, Any]] = ()
    trials: Sequence[Mapping[str, Any]] = ()
    chosen: Mapping[str, Any] = field(default_factory=dict)
    spent: Mapping[str, Any] = field(default_factory=dict)
    repeats: Mapping[str, Any] = field(default_factory=dict)
    predicted: Mapping[str, Any] = field(default_factory=dict)
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    price_per_1000: float | None = None
    slices: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether somebody had to train it: this tournament, or whoever made the adapter that entered."""
        return bool(self.trainable_parameters)


@dataclass(frozen=True)
class Comparison:
    """``first`` minus ``second`` in the primary score, on the same examples."""

    first: str
    second: str
    value: float
    low: float
    high: float
    p: float
    p_adjusted: float


@dataclass(frozen=True)
class Board:
    """A finished tournament. ``standings`` by rank, failed entrants last. ``verdict`` is as ``verdict.decide`` gives it; ``frontiers`` maps a cost
    to the entrants that nobody beats at it; ``settings`` are budget, search, seeds and prices."""

    run: str
    name: str
    created_at: str
    task: Mapping[str, Any]
    standings: tuple[Standing, ...]
    comparisons: tuple[Comparison, ...]
    verdict: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    folder: str = field(default="", compare=False)
    frontiers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller primary score is the better one."""
        return self.task["primary"] in self.task.get("lower_is_better", ())

    @property
    def finished(self) -> tuple[Standing, ...]:
        """The entrants that have a score, best first."""
        return tuple(s for s in self.standings if s.status == "done")

    def standing(self, name: str) -> Standing | None:
        """The entrant called ``name``."""
        return next((s for s in self.standings if s.name == name), None)

    def against_leader(self, name: str) -> Comparison | None:
        """The leader minus ``name``; None for the leader itself and for failed entrants."""
        leader = self.verdict.get("leader")
        for c in self.comparisons:
            if (c.first, c.second) == (leader, name):
                return c
            if (c.second, c.first) == (leader, name):
                return Comparison(c.second, c.first, -c.value, -c.high, -c.low, c.p, c.p_adjusted)
        return None

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON; the folder is where the file is, so it is not in it."""
        out = asdict(self)
        del out["folder"]
        return out

    @staticmethod
    def from_dict(data: Mapping[str, Any], folder: str = "") -> Board:
        """Inverse of ``as_dict``."""
        known = {f.name for f in fields(Board)}
        values = {key: value for key, value in data.items() if key in known}
        fitting = {f.name for f in fields(Standing)}
        values["standings"] = tuple(Standing(**{k: v for k, v in s.items() if k in fitting}) for s in data["standings"])
        values["comparisons"] = tuple(Comparison(**c) for c in data["comparisons"])
        values["notes"] = tuple(data.get("notes", ()))
        return Board(**{**values, "folder": folder})

    def save(self, folder: Path) -> None:
        """Write ``board.json`` and ``board.html``."""
        from luthier.tournament.page import render

        write_atomic(folder / BOARD_JSON, json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n")
        write_atomic(folder / BOARD_HTML, render(self))

    @staticmethod
    def load(folder: Path) -> Board:
        """Read ``board.json``. Raises StoreError when it is missing or damaged."""
        path = folder / BOARD_JSON
        try:
            return Board.from_dict(json.loads(path.read_text(encoding="utf-8")), str(folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: no readable board: {error}", hint="run the tournament again") from error


def rank(standings: Sequence[Standing], *, lower_is_better: bool = False) -> tuple[Standing, ...]:
    """By score, best first, equal scores sharing a rank; failed entrants last, in their order."""
    sign = 1.0 if lower_is_better else -1.0
    done = sorted((s for s in standings if s.status == "done"), key=lambda s: sign * s.score["value"])
    out: list[Standing] = []
    for place, standing in enumerate(done, start=1):
        same = out and out[-1].score["value"] == standing.score["value"]
        out.append(replace(standing, rank=out[-1].rank if same else place))
    return (*out, *(s for s in standings if s.status == "failed"))


def compare_all(task: Task, results: Mapping[str, Sequence[EvalResult]]) -> tuple[Comparison, ...]:
    """Every pair of entrants in the primary score on the examples that they all answered, over all their seeds."""
    names = list(results)
    if len(names) < 2:
        return ()
    pairs = list(combinations(names, 2))
    return tuple(
        Comparison(first, second, d.value, d.low, d.high, d.p, d.p_adjusted)
        for (first, second), d in zip(pairs, compare_entrants(task, results), strict=True)
    )
