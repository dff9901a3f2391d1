"""mae and rmse against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from luthier.core import catalog
from luthier.scorers._score import Answer, Figure, Resources, Target, score_all

GIVEN, WANTED = ["3", "about -1.5 degrees", "I do not know", "10"], ["1", "2.5", "4", "10"]


def figure(name: str, given: list[str] = GIVEN) -> Figure:
    entry = catalog.load("scorers", name)
    answers, targets = [Answer(text) for text in given], [Target(text) for text in WANTED]
    scores = score_all(entry, entry.configure(), answers, targets, Resources())
    return Figure(entry, entry.configure(), answers, targets, [s.value for s in scores], [s.detail for s in scores])


@pytest.mark.parametrize(("name", "peer"), [("mae", mean_absolute_error), ("rmse", root_mean_squared_error)])
def test_it_is_scikit_learns(name: str, peer: object) -> None:
    found = figure(name)
    assert found.value == pytest.approx(peer([1.0, 2.5, 10.0], [3.0, -1.5, 10.0]))  # type: ignore[operator]
    counts = np.array([[2, 1, 5, 0], [0, 0, 3, 0]], dtype=np.float32)
    twice, nothing = found(counts)
    assert twice == pytest.approx(peer([1.0, 1.0, 2.5], [3.0, 3.0, -1.5]))  # type: ignore[operator]
    assert math.isnan(nothing)
    assert catalog.load("scorers", name).optional("LOWER_IS_BETTER")


def test_an_example_without_a_number_has_no_score() -> None:
    entry = catalog.load("scorers", "mae")
    assert entry(Answer("none"), Target("3"), entry.configure()).value is None
    assert entry(Answer("5"), Target("3"), entry.configure()).value == 2.0
