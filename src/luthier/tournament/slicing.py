"""Parts of the test set on the board: each entrant's primary score by language, product or whatever the task's ``slices`` name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluation.result import EvalResult
from luthier.evaluation.slices import parts_of, reversals
from luthier.tournament.board import Board, Standing

Slices = Mapping[str, Mapping[str, Mapping[str, float]]]


def slices_over_seeds(results: Sequence[EvalResult]) -> dict[str, dict[str, dict[str, float]]]:
    """Each part's figure, averaged over results that differ in the seed."""
    first = results[0].slices
    out: dict[str, dict[str, dict[str, float]]] = {}
    for key, values in first.items():
        for value, part in values.items():
            figures = [r.slices[key][value]["value"] for r in results if value in r.slices.get(key, {})]
            out.setdefault(key, {})[value] = {**part, "value": sum(figures) / len(figures)}
    return out


def simpson_warnings(standings: Sequence[Standing], *, lower_is_better: bool = False) -> list[str]:
    """Where the parts say the opposite of the whole, for any two entrants."""
    done = [s for s in standings if s.status == "done" and s.slices]
    parts = {s.name: parts_of(s.slices) for s in done}
    whole = {s.name: float(s.score["value"]) for s in done}
    return [str(found) for found in reversals(parts, whole, lower_is_better=lower_is_better)]


def slice_rows(board: Board) -> list[dict[str, Any]]:
    """Rows of the slices table: key, value, examples, and each finished entrant's figure with its shade (0 to 9)."""
    first = next((s.slices for s in board.finished if s.slices), {})
    rows = []
    for key, values in first.items():
        for value, figure in values.items():
            found = [s.slices.get(key, {}).get(value) for s in board.finished]
            known = [f["value"] for f in found if f is not None]
            rows.append(
                {
                    "key": key,
                    "value": value,
                    "examples": int(figure["examples"]),
                    "cells": [
                        {
                            "value": None if f is None else f["value"],
                            "best": f is not None and len(known) > 1 and f["value"] == _best(board, known),
                        }
                        for f in found
                    ],
                }
            )
    return rows


def _best(board: Board, values: list[float]) -> float:
    return min(values) if board.lower_is_better else max(values)
