"""Mean over labels of F1, so that rare labels count as much as frequent ones."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.catalog import EntryConfig
from luthier.scorers import _labels
from luthier.scorers._score import Answer, Floats, Score, Target


class Config(EntryConfig):
    """``labels`` are averaged over; empty means the labels that occur among the targets."""

    labels: tuple[str, ...] = ()


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the label is right, else 0.0. The figure of a set is ``combine`` of ``sums``, not the mean of these."""
    return _labels.right(answer, target)


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """Hits, targets and answers of each label. An answer outside the labels is a miss and nobody's false alarm."""
    return _labels.label_sums(answers, targets, _labels.known_labels(targets, config.labels))


def combine(totals: Floats, config: Config) -> Floats:
    """Macro F1 of each row, F1 = 2 hits / (targets + answers), as scikit-learn computes it with ``labels`` and ``zero_division=0``.

    Without ``labels``, one that a resample drew neither as target nor as answer has no F1 there and is left out of its mean.
    """
    return _labels.average("f1", totals, _labels.Averaged(labels=config.labels))
