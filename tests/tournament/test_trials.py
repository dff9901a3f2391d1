from __future__ import annotations

from typing import Any

import pytest

from luthier.tournament.board import Standing
from luthier.tournament.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from luthier.tournament.trials import picture, settings_text


def trial(number: int, state: str, *values: float, reason: str = "") -> dict[str, Any]:
    curve = [[(i + 1) / 4, value] for i, value in enumerate(values)]
    value = values[-1] if values else None
    return {
        "number": number,
        "params": {"train.learning_rate": 0.00012345, "method.rank": 8},
        "state": state,
        "value": value,
        "seconds": 3.0,
        "curve": curve,
        "reason": reason,
    }


TRIALS = (
    trial(0, "done", 0.9, 0.7, 0.6, 0.5),
    trial(1, "pruned", 1.2),
    trial(2, "done", 0.8, 0.6, 0.5, 0.4),
    trial(3, "failed", reason="the loss is nan"),
    trial(4, "pruned", 900.0, 0.3),
)


def standing(metric: str, trials: tuple[dict[str, Any], ...] = TRIALS) -> Standing:
    return Standing("lora", "lora", "m", "done", trials=trials, settings={"train": {"metric": metric}})


def test_the_winner_is_drawn_last_and_told() -> None:
    found = picture(standing("validation_loss"), 2)
    assert found.metric == "loss"
    assert found.summary == "5 trials: 2 finished, 2 given up early, 1 failed"
    assert found.curves[-1].best
    assert found.curves[-1].title == "trial 3, learning rate 0.000123, rank 8: 0.4 (finished)"
    assert [row[-1] for row in found.rows] == [False, False, True, False, False]
    assert found.rows[3][2] == "failed: the loss is nan"
    assert found.rows[3][3] == ""


def test_where_more_is_better_the_highest_wins() -> None:
    found = picture(standing("validation_accuracy"), 0)
    assert [row[0] for row in found.rows if row[-1]] == [1]


def test_everything_is_inside_and_an_outlier_does_not_flatten_the_rest() -> None:
    found = picture(standing("validation_loss"), 0)
    dots = [dot for curve in found.curves for dot in curve.dots]
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in dots)
    done = [y for curve in found.curves if curve.state == "done" for _, y in curve.dots]
    assert max(done) - min(done) > 50


def test_a_search_of_which_nothing_is_known_can_be_drawn() -> None:
    found = picture(standing("validation_loss", (trial(0, "failed", reason="x"),)), 0)
    assert found.curves[0].path == ""
    assert not any(row[-1] for row in found.rows)


def test_many_trials_are_cut_in_the_table_only() -> None:
    found = picture(standing("validation_loss", tuple(trial(i, "done", 0.5, 0.4) for i in range(55))), 0)
    assert (len(found.curves), len(found.rows), found.more) == (55, 40, 15)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"train.learning_rate": 3e-5}, "learning rate 3e-05"),
        ({"train.schedule": "cosine"}, "schedule cosine"),
        ({}, ""),
    ],
)
def test_settings(params: dict[str, Any], text: str) -> None:
    assert settings_text(params) == text
