"""The learning rate over a whole run, against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from luthier.training.schedule import Curve, rate, warmup_steps


def curve(schedule: str, warmup: float, total: int = 10) -> list[float]:
    return [rate(s, total=total, peak=1.0, schedule=schedule, warmup=warmup) for s in range(total)]  # type: ignore[arg-type]


def test_warmup_rises_linearly_and_reaches_the_peak() -> None:
    values = curve("constant", 0.4)
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])


def test_cosine_and_linear_fall_from_peak_towards_zero() -> None:
    expected = [0.5 * (1 + math.cos(math.pi * s / 10)) for s in range(10)]
    assert curve("cosine", 0) == pytest.approx(expected)
    assert curve("linear", 0) == pytest.approx([1 - s / 10 for s in range(10)])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "polynomial", "inverse_sqrt", "wsd"])
@pytest.mark.parametrize("warmup", [0, 0.1, 0.99, 3, 50])
def test_every_step_moves(schedule: str, warmup: float) -> None:
    assert all(0 < value <= 1 for value in curve(schedule, warmup))


def test_warmup_is_a_share_below_one_and_steps_from_one() -> None:
    assert warmup_steps(200, 0.1) == 20
    assert warmup_steps(200, 5) == 5
    assert warmup_steps(3, 5) == 3


def of_transformers(name: str, total: int, warmup: int, **options: float) -> list[float]:
    import torch
    from transformers import optimization

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made = getattr(optimization, name)(optimizer, num_warmup_steps=warmup, **options)
    found = []
    for _ in range(total):
        found.append(made.get_last_lr()[0])
        optimizer.step()
        made.step()
    return found


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize(
    ("schedule", "curve", "name", "options"),
    [
        ("cosine", {}, "get_cosine_schedule_with_warmup", {"num_training_steps": 40}),
        (
            "cosine",
            {"floor": 0.2},
            "get_cosine_with_min_lr_schedule_with_warmup",
            {"num_training_steps": 40, "min_lr_rate": 0.2},
        ),
        ("linear", {}, "get_linear_schedule_with_warmup", {"num_training_steps": 40}),
        ("inverse_sqrt", {}, "get_inverse_sqrt_schedule", {}),
        (
            "polynomial",
            {"power": 2.5, "floor": 0.05},
            "get_polynomial_decay_schedule_with_warmup",
            {"num_training_steps": 40, "power": 2.5, "lr_end": 0.05},
        ),
        (
            "wsd",
            {"decay": 12, "floor": 0.1},
            "get_wsd_schedule",
            {"num_decay_steps": 12, "num_training_steps": 40, "min_lr_ratio": 0.1, "decay_type": "1-sqrt"},
        ),
    ],
)
def test_equals_transformers_after_the_warmup(
    schedule: str, curve: dict[str, float], name: str, options: dict[str, float], warmup: int
) -> None:
    expected = of_transformers(name, 40, warmup, **options)
    found = [
        rate(s, total=40, peak=1.0, schedule=schedule, warmup=warmup, curve=Curve(**curve))  # type: ignore[arg-type]
        for s in range(40)
    ]
    assert found[warmup:] == pytest.approx(expected[warmup:], rel=1e-9)
    assert found[:warmup] == sorted(found[:warmup])


def test_a_linear_fall_to_a_floor() -> None:
    values = [rate(s, total=10, peak=2.0, schedule="linear", warmup=0, curve=Curve(floor=0.5)) for s in (0, 5, 10)]
    assert values == pytest.approx([2.0, 1.5, 1.0])


def test_wsd_is_stable_until_the_cooldown_which_is_a_share_or_steps() -> None:
    for decay in (0.2, 4):
        values = [rate(s, total=20, peak=1.0, schedule="wsd", warmup=2, curve=Curve(decay=decay)) for s in range(20)]
        assert values[2:17] == [1.0] * 15
        assert values[17:] == pytest.approx([1 - math.sqrt(k / 4) for k in (1, 2, 3)])
    whole = [rate(s, total=4, peak=1.0, schedule="wsd", warmup=1, curve=Curve(decay=99)) for s in range(4)]
    assert whole[1:] == pytest.approx([1 - math.sqrt(k / 3) for k in range(3)]), "no longer than what is left"
