"""Mean absolute error between the numbers that answers give and those of the targets, in their unit; lower is better."""

from __future__ import annotations

from luthier.scorers import _correlation, _distance
from luthier.scorers._score import Answer, Score, Target

LOWER_IS_BETTER = True

Config = _correlation.Correlated


def score(answer: Answer, target: Target, config: Config) -> Score:
    """|given - wanted|; None where a number is missing (such examples are left out; scorer ``answered`` counts them)."""
    return _distance.distance(answer, target, config)
