"""Matthews' correlation between given and true labels: 1 perfect, 0 chance, also when labels are very unequal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.core.catalog import EntryConfig
from luthier.scorers import _labels
from luthier.scorers._score import Answer, Floats, Score, Target

BOUNDS = (-1.0, 1.0)


class Config(EntryConfig):
    """``labels`` are the classes; empty means those that occur among the targets. Answers outside them are one more class."""

    labels: tuple[str, ...] = ()


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the label is right, else 0.0. The figure of a set is ``combine`` of ``sums``, not the mean of these."""
    return _labels.right(answer, target)


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """Columns: right, one, then for each class (the last one is everything else) how often it is the target and how often the answer."""
    index = {label: i for i, label in enumerate(_labels.known_labels(targets, config.labels))}
    other = len(index)
    out = np.zeros((len(targets), 2 + 2 * (other + 1)))
    for row, (answer, target) in enumerate(zip(answers, targets, strict=True)):
        wanted, given = index.get(target.text, other), index.get(answer.text, other)
        out[row, 0] = answer.text == target.text
        out[row, 1] = 1.0
        out[row, 2 + wanted] = 1.0
        out[row, 2 + other + 1 + given] = 1.0
    return out


def combine(totals: Floats, config: Config) -> Floats:
    """The K-category correlation of Gorodkin (2004), eq. 8, each row; 0 where answers or targets are all the same."""
    right, count = totals[:, 0], totals[:, 1]
    wanted, given = np.split(totals[:, 2:], 2, axis=1)
    above = right * count - (wanted * given).sum(axis=1)
    spread = (count**2 - (wanted**2).sum(axis=1)) * (count**2 - (given**2).sum(axis=1))
    figures: Floats = np.divide(above, np.sqrt(spread), out=np.zeros(len(totals)), where=spread > 0)
    return figures
