"""Share of answers that are exactly the target."""

from __future__ import annotations

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Answer, Score, Target


class Config(EntryConfig):
    """No options: see ``exact`` for comparison after normalisation."""


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the answer is the target, else 0.0. The mean over examples is scikit-learn's ``accuracy_score``."""
    return Score(1.0 if answer.text == target.text else 0.0)
