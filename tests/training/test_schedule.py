"""The learning rate over a whole run, against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from luthier.training.schedule import rate, warmup_steps


def curve(schedule: str, warmup: float, total: int = 10) -> list[float]:
    return [rate(s, total=total, peak=1.0, schedule=schedule, warmup=warmup) for s in range(total)]  # type: ignore[arg-type]


def test_warmup_rises_linearly_and_reaches_the_peak() -> None:
    values = curve("constant", 0.4)
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])


def test_cosine_and_linear_fall_from_peak_towards_zero() -> None:
    expected = [0.5 * (1 + math.cos(math.pi * s / 10)) for s in range(10)]
    assert curve("cosine", 0) == pytest.approx(expected)
    assert curve("linear", 0) == pytest.approx([1 - s / 10 for s in range(10)])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.1, 0.99, 3, 50])
def test_every_step_moves(schedule: str, warmup: float) -> None:
    assert all(0 < value <= 1 for value in curve(schedule, warmup))


def test_warmup_is_a_share_below_one_and_steps_from_one() -> None:
    assert warmup_steps(200, 0.1) == 20
    assert warmup_steps(200, 5) == 5
    assert warmup_steps(3, 5) == 3
