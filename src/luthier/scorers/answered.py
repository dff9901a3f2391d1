"""Share of questions that got any answer at all: for answers that only a judge or a person can rate."""

from __future__ import annotations

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Answer, Score, Target


class Config(EntryConfig):
    """No options: white space alone is no answer."""


def needs_target(config: Config) -> bool:
    """Any answer will do."""
    return False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the answer says something, else 0.0."""
    return Score(1.0 if answer.text.strip() else 0.0)
