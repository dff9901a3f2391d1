"""How far answered numbers lie from those of the targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.scorers._correlation import Correlated, columns, pair
from luthier.scorers._score import Answer, Floats, Score, Target


def distance(answer: Answer, target: Target, config: Correlated) -> Score:
    """|given - wanted|; None where a number is missing."""
    found = pair(answer, target, config)
    if found is None:
        return Score(None, {"reason": "no number in the answer or in the target"})
    return Score(abs(found[0] - found[1]), {"answer": found[0], "target": found[1]})


def powered(answers: Sequence[Answer], targets: Sequence[Target], config: Correlated, power: int) -> Floats:
    """Columns: |given - wanted| to the power, and 1; both 0 where a number is missing."""
    given, wanted, known = columns(answers, targets, config)
    return np.stack([np.abs(given - wanted) ** power * known, known], axis=-1)


def mean(totals: Floats) -> Floats:
    """The mean of each row of summed ``powered``; ``nan`` where nothing was counted."""
    out: Floats = np.full(len(totals), np.nan)
    np.divide(totals[:, 0], totals[:, 1], out=out, where=totals[:, 1] > 0)
    return out
