"""Pearson's correlation between the numbers that answers give and those of the targets (graded similarity, ratings)."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.scorers import _correlation
from luthier.scorers._score import Answer, Floats, Score, Target

Config = _correlation.Correlated

BOUNDS = (-1.0, 1.0)


def score(answer: Answer, target: Target, config: Config) -> Score:
    """How near the two numbers are, 1.0 when equal; None without a number. The figure of a set is ``combine`` of ``sums``."""
    return _correlation.nearness(answer, target, config)


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """Count, x, y, x², y², xy; zeros where a number is missing, so that such examples are left out."""
    return _correlation.moments(*_correlation.columns(answers, targets, config))


def combine(totals: Floats, config: Config) -> Floats:
    """Pearson's r of each row, as ``scipy.stats.pearsonr``; 0 where one side never varies, ``nan`` below two numbers."""
    return _correlation.correlation(totals)
