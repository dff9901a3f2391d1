"""rmse is a root of a mean over the set, not a mean of roots."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core import catalog
from luthier.scorers._score import Answer, Figure, Target


def test_a_set_has_one_root() -> None:
    entry = catalog.load("scorers", "rmse")
    answers, targets = [Answer("1"), Answer("7")], [Target("0"), Target("0")]
    found = Figure(entry, entry.configure(), answers, targets, [1.0, 7.0])
    assert found.value == pytest.approx(5.0)  # the mean of the distances is 4
    assert found.left_out() == pytest.approx(np.array([7.0, 1.0]))
