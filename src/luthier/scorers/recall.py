"""Of the examples that have a label, the share that was found, averaged over labels."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.scorers import _labels
from luthier.scorers._score import Answer, Floats, Score, Target

Config = _labels.Averaged


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the label is right, else 0.0. The figure of a set is ``combine`` of ``sums``, not the mean of these."""
    return _labels.right(answer, target)


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """Hits, targets and answers of each label."""
    return _labels.averaged_sums(answers, targets, config)


def combine(totals: Floats, config: Config) -> Floats:
    """The figure of each row, as scikit-learn's ``recall_score`` computes it with these labels."""
    return _labels.average("recall", totals, config)
