"""Precision, recall and F1 against scikit-learn, over every kind of average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from luthier.core import catalog
from luthier.core.errors import InputError
from luthier.scorers._score import Answer, Figure, Target

REFERENCE = {"precision": precision_score, "recall": recall_score, "f1": f1_score}


def figure(name: str, answers: Sequence[str], targets: Sequence[str], **options: Any) -> float:
    entry = catalog.load("scorers", name)
    config = entry.configure(options)
    given, wanted = [Answer(a) for a in answers], [Target(t) for t in targets]
    return Figure(entry, config, given, wanted, [None] * len(given)).value


def drawn(seed: int, labels: int = 5) -> tuple[list[str], list[str]]:
    """Answers with text that is no label among them; label 0 is common, the last one rare."""
    draw = np.random.default_rng(seed)
    shares = 1.0 / np.arange(1, labels + 1)
    targets = [str(x) for x in draw.choice(labels, 160, p=shares / shares.sum())]
    answers = [t if draw.random() < 0.6 else str(draw.integers(0, labels + 2)) for t in targets]
    return answers, targets


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_scikit_learns(name: str, average: str, seed: int) -> None:
    answers, targets = drawn(seed)
    expected = REFERENCE[name](targets, answers, labels=sorted(set(targets)), average=average, zero_division=0)
    assert figure(name, answers, targets, average=average) == pytest.approx(expected)


@pytest.mark.parametrize("name", REFERENCE)
def test_labels_that_never_occur_count_when_they_are_given(name: str) -> None:
    answers, targets = drawn(7)
    labels = ["0", "1", "never"]
    expected = REFERENCE[name](targets, answers, labels=labels, average="macro", zero_division=0)
    assert figure(name, answers, targets, labels=labels) == pytest.approx(expected)


@pytest.mark.parametrize("name", REFERENCE)
def test_one_label_that_is_looked_for(name: str) -> None:
    answers, targets = drawn(2, labels=3)
    found = [str(int(a == "1")) for a in answers]
    wanted = [str(int(t == "1")) for t in targets]
    expected = REFERENCE[name](wanted, found, pos_label="1", average="binary")
    assert figure(name, answers, targets, average="binary", positive="1") == pytest.approx(expected)


def test_worked_by_hand() -> None:
    # a: 2 hits of 3 targets and 2 answers; b: 1 hit of 1 target and 2 answers
    answers, targets = ["a", "a", "b", "b"], ["a", "a", "a", "b"]
    assert figure("precision", answers, targets) == pytest.approx((1 + 1 / 2) / 2)
    assert figure("recall", answers, targets) == pytest.approx((2 / 3 + 1) / 2)
    assert figure("f1", answers, targets, average="weighted") == pytest.approx((4 / 5 * 3 + 2 / 3 * 1) / 4)


def test_the_positive_label_and_its_average_go_together() -> None:
    entry = catalog.load("scorers", "recall")
    with pytest.raises(InputError, match="positive"):
        entry.configure({"average": "binary"})
    with pytest.raises(InputError, match="binary"):
        entry.configure({"positive": "spam"})
    assert figure("recall", ["ham"], ["ham"], average="binary", positive="spam") == 0.0
