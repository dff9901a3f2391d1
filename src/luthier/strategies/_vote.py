"""Votes over answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from luthier.core.engine import Generation
from luthier.core.errors import UnsupportedError
from luthier.strategies._answers import same_answer
from luthier.strategies._thinking import mean_logprob


def elect(answers: Sequence[str], weights: Sequence[float]) -> int:
    """The place of the first answer of those that together weigh most. Of equals, the one that came first wins."""
    sums: dict[str, float] = {}
    first: dict[str, int] = {}
    for place, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        key = same_answer(answer)
        sums[key] = sums.get(key, 0.0) + weight
        first.setdefault(key, place)
    return first[max(sums, key=lambda key: (sums[key], -first[key]))]


def likelihoods(made: Sequence[Generation], engine: str) -> list[float]:
    """Mean log-probability a token of each answer, in nats. Raises UnsupportedError when the engine does not say it."""
    found = [mean_logprob(each) for each in made]
    known = [each for each in found if each is not None and not math.isnan(each)]
    if len(known) < len(found):
        raise UnsupportedError(
            f"{engine} does not say how likely its answers are",
            hint="choose by another rule: a majority vote, a reward model or a judge",
        )
    return known


def probabilities(made: Sequence[Generation], engine: str) -> list[float]:
    """The probability of each answer, to the power of one by its number of tokens."""
    return [math.exp(each) for each in likelihoods(made, engine)]
