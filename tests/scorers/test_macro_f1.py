from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import f1_score

from luthier.core import catalog
from luthier.scorers._score import Answer, Counts, Figure, Floats, Target
from luthier.scorers.macro_f1 import Config


def figure(answers: Sequence[str], targets: Sequence[str], config: Config) -> Figure:
    entry = catalog.load("scorers", "macro_f1")
    return Figure(entry, config, [Answer(a) for a in answers], [Target(t) for t in targets], [None] * len(answers))


def aggregate(answers: Sequence[str], targets: Sequence[str], config: Config) -> float:
    return figure(answers, targets, config).value


def resampled(answers: Sequence[str], targets: Sequence[str], counts: Counts, config: Config) -> Floats:
    return figure(answers, targets, config)(counts)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_scikit_learns_where_answers_are_labels(seed: int) -> None:
    draw = np.random.default_rng(seed)
    targets = [str(x) for x in draw.integers(0, 6, 150)]
    answers = [t if draw.random() < 0.6 else str(draw.integers(0, 6)) for t in targets]
    assert aggregate(answers, targets, Config()) == pytest.approx(f1_score(targets, answers, average="macro"))


def test_worked_by_hand() -> None:
    # a: TP 1, FP 1, FN 1 -> F1 1/2;  b: TP 1, FP 1, FN 1 -> 1/2
    assert aggregate(["a", "b", "a", "b"], ["a", "a", "b", "b"], Config()) == pytest.approx(0.5)
    # unparsed text misses its target and is no label's false alarm: a: TP 1, FN 1 -> 2/3; b: TP 2 -> 1
    assert aggregate(["a", "I think it is a", "b", "b"], ["a", "a", "b", "b"], Config()) == pytest.approx(
        (2 / 3 + 1) / 2
    )


def test_given_labels_are_averaged_over_also_when_absent() -> None:
    assert aggregate(["a", "b"], ["a", "b"], Config(labels=("a", "b", "c"))) == pytest.approx(2 / 3)


def test_a_label_that_a_resample_did_not_draw_is_left_out_of_its_mean() -> None:
    counts = np.array([[2, 2, 0, 0], [1, 1, 1, 1]], dtype=np.float32)
    values = resampled(["a", "a", "b", "a"], ["a", "a", "b", "b"], counts, Config())
    whole = f1_score(["a", "a", "b", "b"], ["a", "a", "b", "a"], average="macro")
    assert values == pytest.approx([1.0, whole])
