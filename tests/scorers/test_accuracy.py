from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from luthier.core import catalog
from luthier.scorers._score import aggregate


def test_the_mean_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    targets = [str(x) for x in draw.integers(0, 5, 200)]
    answers = [str(x) for x in draw.integers(0, 5, 200)]
    entry = catalog.load("scorers", "accuracy")
    assert aggregate(entry, entry.configure(), answers, targets) == pytest.approx(accuracy_score(targets, answers))


def test_it_takes_the_answer_literally() -> None:
    entry = catalog.load("scorers", "accuracy")
    assert entry("Refund", "refund", entry.configure()).value == 0.0
