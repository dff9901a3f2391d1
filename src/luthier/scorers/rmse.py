"""Root of the mean squared error between the numbers that answers give and those of the targets, in their unit; lower is better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.scorers import _correlation, _distance
from luthier.scorers._score import Answer, Floats, Score, Target

LOWER_IS_BETTER = True

Config = _correlation.Correlated


def score(answer: Answer, target: Target, config: Config) -> Score:
    """|given - wanted|; None where a number is missing. The figure of a set is ``combine`` of ``sums``, not the mean of these."""
    return _distance.distance(answer, target, config)


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """Columns: (given - wanted)², 1."""
    return _distance.powered(answers, targets, config, 2)


def combine(totals: Floats, config: Config) -> Floats:
    """The root of their mean, each row."""
    figures: Floats = np.sqrt(_distance.mean(totals))
    return figures
