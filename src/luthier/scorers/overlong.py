"""How far an answer is over a length: 0 up to there, down to -1; for rewards, so that answers do not grow (Yu et al. 2025, DAPO, equation 13)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Answer, Score, Target
from luthier.scorers._words import words

BOUNDS = (-1.0, 0.0)


class Config(EntryConfig):
    """``most`` units cost nothing; from there to ``margin`` units more the score falls evenly to -1. ``unit``: ``words`` (Chinese:
    characters) or ``characters``. The paper counts tokens, which a text does not tell.
    """

    most: int = Field(ge=1)
    margin: int = Field(0, ge=0)
    unit: Literal["words", "characters"] = "words"


def needs_target(config: Config) -> bool:
    """The answer alone is read."""
    return False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """0.0 to -1.0; the detail holds the length."""
    length = len(answer.text) if config.unit == "characters" else len(words(answer.text))
    over = length - config.most
    if over <= 0:
        return Score(0.0, {"length": length})
    return Score(-min(over / config.margin, 1.0) if config.margin else -1.0, {"length": length})
