"""Parts of the test set on the board: each entrant's primary score by language, product or whatever the task's ``slices`` name."""

from __future__ import annotations

from typing import Any

from luthier.tournament.board import Board


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
