from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from luthier.core import catalog
from luthier.scorers._score import Answer, Figure, Target


def test_the_mean_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    targets = [str(x) for x in draw.integers(0, 5, 200)]
    answers = [str(x) for x in draw.integers(0, 5, 200)]
    entry = catalog.load("scorers", "accuracy")
    config = entry.configure()
    pairs = [(Answer(a), Target(t)) for a, t in zip(answers, targets, strict=True)]
    values = [entry(answer, target, config).value for answer, target in pairs]
    figure = Figure(entry, config, [a for a, _ in pairs], [t for _, t in pairs], values)
    assert figure.value == pytest.approx(accuracy_score(targets, answers))


def test_it_takes_the_answer_literally() -> None:
    entry = catalog.load("scorers", "accuracy")
    assert entry(Answer("Refund"), Target("refund"), entry.configure()).value == 0.0
