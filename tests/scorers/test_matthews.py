from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from luthier.core import catalog
from luthier.scorers._score import Answer, Figure, Target
from luthier.scorers.matthews import Config


def figure(answers: Sequence[str], targets: Sequence[str], config: Config | None = None) -> float:
    entry = catalog.load("scorers", "matthews")
    given, wanted = [Answer(a) for a in answers], [Target(t) for t in targets]
    return Figure(entry, config or Config(), given, wanted, [None] * len(given)).value


@pytest.mark.parametrize("labels", [2, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_scikit_learns(labels: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    targets = [str(x) for x in draw.integers(0, labels, 120)]
    answers = [t if draw.random() < 0.5 else str(draw.integers(0, labels)) for t in targets]
    assert figure(answers, targets) == pytest.approx(matthews_corrcoef(targets, answers))


def test_answers_that_are_no_label_are_one_more_class() -> None:
    targets = ["a", "b", "a", "b", "a", "b"]
    answers = ["a", "b", "hm", "what", "a", "a"]
    assert figure(answers, targets) == pytest.approx(matthews_corrcoef(targets, ["a", "b", "?", "?", "a", "a"]))


def test_two_classes_worked_by_hand() -> None:
    # TP 3, FN 1, FP 1, TN 5: (3*5 - 1*1) / sqrt(4*4*6*6) = 14 / 24
    targets = ["y"] * 4 + ["n"] * 6
    answers = ["y", "y", "y", "n", "y", *["n"] * 5]
    assert figure(answers, targets) == pytest.approx(14 / 24)


def test_it_is_zero_where_nothing_varies() -> None:
    assert figure(["a", "a"], ["a", "b"]) == 0.0
    assert figure(["a", "a"], ["a", "a"]) == 0.0
    assert figure(["b", "a"], ["a", "b"]) == pytest.approx(-1.0)
