"""Whether the target is what the model would have said, token by token: LAMBADA's accuracy."""

from __future__ import annotations

from luthier.core.catalog import EntryConfig
from luthier.scorers._likelihood import asked
from luthier.scorers._score import Answer, Score, Target


class Config(EntryConfig):
    """No options: every token of the target must be the likeliest one after what precedes it."""


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when it is (Paperno et al., 2016), else 0.0; None when the engine does not say."""
    option = asked(answer, target)
    if option is None or option.greedy is None:
        return Score(None, {"reason": "the engine did not say whether the target is its likeliest text"})
    return Score(float(option.greedy))
