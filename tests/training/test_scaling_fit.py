from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from luthier.core.errors import DataError, InputError
from luthier.training.scaling_fit import Fit, Point, fit, read_points

HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
SIZES, BUDGETS = (1e7, 1e8, 1e9, 5e9), (2e8, 2e9, 2e10, 1e11)


def points(noise: float = 0.0) -> list[Point]:
    draws = np.random.default_rng(0)
    return [
        Point(n, d, (1.69 + 406.4 / n**0.34 + 410.7 / d**0.28) * math.exp(draws.normal(0, noise)))
        for n in SIZES
        for d in BUDGETS
    ]


@pytest.fixture(scope="module")
def exact() -> Fit:
    return fit(points(), bootstrap=0)


def test_it_finds_the_constants_of_hoffmann_et_al(exact: Fit) -> None:
    found = exact
    assert found.law == "parameters and tokens" and found.error < 1e-9 and not found.intervals
    for name, value in HOFFMANN.items():
        assert found.constants[name] == pytest.approx(value, rel=1e-6)
    assert found.loss(7e10, 1.4e12) == pytest.approx(1.69 + 406.4 / 7e10**0.34 + 410.7 / 1.4e12**0.28)


def test_the_best_use_of_a_budget_is_the_smallest_loss_at_it(exact: Fit) -> None:
    best = exact.optimum(1e21)
    assert 6 * best.parameters * best.tokens == pytest.approx(1e21)
    sizes = np.geomspace(best.parameters / 100, best.parameters * 100, 20_001)  # the minimum by search
    losses = 1.69 + 406.4 / sizes**0.34 + 410.7 / (1e21 / 6 / sizes) ** 0.28
    assert best.parameters == pytest.approx(sizes[losses.argmin()], rel=1e-3)
    assert best.loss == pytest.approx(losses.min()) and best.low is None


def test_noise_widens_the_intervals_and_one_bad_run_moves_little() -> None:
    found = fit(points(0.003), bootstrap=24)
    for name, value in HOFFMANN.items():
        low, high = found.intervals[name]
        assert low < high and low * 0.75 < value < high * 1.25
    best = found.optimum(1e21)
    assert best.low is not None and best.high is not None and best.low <= best.parameters <= best.high
    broken = points()
    broken[5] = Point(broken[5].parameters, broken[5].tokens, 1.5 * broken[5].loss)
    robust = fit(broken, bootstrap=0)
    assert robust.constants["alpha"] == pytest.approx(0.34, rel=0.05) and robust.error > 0.3
    assert fit(points(0.003), bootstrap=2).samples == found.samples[:2]  # the seed decides


def test_one_variable_is_the_power_law_of_kaplan_et_al() -> None:
    sized = fit([Point(n, 1e9, (8.8e13 / n) ** 0.076) for n in (1e6, 1e7, 1e8, 1e9)], bootstrap=30)
    assert sized.law == "parameters" and sized.constants["X_c"] == pytest.approx(8.8e13, rel=1e-6)
    assert sized.constants["alpha"] == pytest.approx(0.076) and sized.loss(1e10, 5.0) == pytest.approx((8.8e3) ** 0.076)
    fed = fit([Point(1e8, d, (5.4e13 / d) ** 0.095) for d in (1e7, 1e8, 1.02e8, 1e9)], bootstrap=0)
    assert fed.law == "tokens" and fed.constants["alpha"] == pytest.approx(0.095)
    with pytest.raises(InputError, match="these vary in tokens alone"):
        fed.optimum(1e20)


def test_too_little_to_tell() -> None:
    with pytest.raises(
        DataError, match=r"4 runs with 2 different sizes and 2 different token budgets(.|\n)*at least 3 sizes"
    ):
        fit([Point(n, d, 3.0) for n in (1e6, 1e7) for d in (1e7, 1e8)])
    with pytest.raises(DataError, match="does not fall with size or tokens"):
        fit([Point(n, 1e9, 3 + n / 1e8) for n in (1e6, 1e7, 1e8)])
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="must be positive numbers"):
            fit([*points(), Point(1e6, 1e6, bad)])


def test_points_from_a_file_and_the_plain_form(tmp_path: Path, exact: Fit) -> None:
    path = tmp_path / "points.csv"
    path.write_text("parameters,tokens,loss\n1e6,2e6,4.5\n2e6,2e6,4.25\n")
    assert read_points(path) == [Point(1e6, 2e6, 4.5), Point(2e6, 2e6, 4.25)]
    path.write_text("parameters,tokens,loss\n1e6,many,4.5\n")
    with pytest.raises(DataError, match=r"points\.csv:2: could not convert"):
        read_points(path)
    path.write_text("parameters,loss\n1e6,4.5\n")
    with pytest.raises(DataError, match=r"points\.csv:2: tokens is missing"):
        read_points(path)
    assert Fit.from_dict(exact.as_dict()) == exact
