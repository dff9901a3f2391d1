"""Numbers in answers against numbers in targets, for the scorers that correlate them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.core.catalog import EntryConfig
from luthier.scorers._numbers import Take, answer_number
from luthier.scorers._score import Answer, Floats, Score, Target


class Correlated(EntryConfig):
    """``take`` says which number of a text counts, as in scorer ``number``; ``fractions`` False reads a grade like 4/5 as 4 (with ``take:
    first``)."""

    take: Take = "auto"
    fractions: bool = True


def pair(answer: Answer, target: Target, config: Correlated) -> tuple[float, float] | None:
    """(given, wanted), or None when either text has no number."""
    given = answer_number(answer.text, config.take, fractions=config.fractions)
    wanted = answer_number(target.text, config.take, fractions=config.fractions)
    return None if given is None or wanted is None else (float(given.value), float(wanted.value))


def nearness(answer: Answer, target: Target, config: Correlated) -> Score:
    """1 / (1 + distance): 1.0 where the numbers are equal; None where one is missing. The figure of a set is a correlation instead."""
    found = pair(answer, target, config)
    if found is None:
        missing = "answer" if answer_number(answer.text, config.take) is None else "target"
        return Score(None, {"reason": f"no number in the {missing}"})
    return Score(1.0 / (1.0 + abs(found[0] - found[1])), {"answer": found[0], "target": found[1]})


def columns(answers: Sequence[Answer], targets: Sequence[Target], config: Correlated) -> tuple[Floats, Floats, Floats]:
    """(given, wanted, known): ``known`` is 1 where both have a number and 0 elsewhere, where the others are 0 too."""
    rows = [pair(answer, target, config) for answer, target in zip(answers, targets, strict=True)]
    given = np.array([row[0] if row else 0.0 for row in rows], dtype=np.float64)
    wanted = np.array([row[1] if row else 0.0 for row in rows], dtype=np.float64)
    return given, wanted, np.array([row is not None for row in rows], dtype=np.float64)


def moments(given: Floats, wanted: Floats, known: Floats) -> Floats:
    """Columns whose sums give Pearson's r: count, x, y, x², y², xy, of numbers centred and scaled so that no digits cancel."""
    x, y = (_standard(column, known) for column in (given, wanted))
    stacked: Floats = np.stack([known, x, y, x * x, y * y, x * y], axis=-1)
    return stacked


def _standard(column: Floats, known: Floats) -> Floats:
    count = known.sum()
    if count == 0:
        return np.zeros_like(column)
    scale = np.abs(column * known).max() or 1.0
    column = column / scale
    centred = (column - (column * known).sum() / count) * known
    spread = np.sqrt((centred**2).sum() / count)
    scaled: Floats = centred if spread < 1e-12 else centred / spread
    return scaled


def correlation(totals: Floats) -> Floats:
    """Pearson's r of each row of summed ``moments``; ``nan`` with fewer than two numbers, 0 where either side is constant."""
    count, x, y, xx, yy, xy = totals.T
    some = count >= 2
    safe = np.where(some, count, 1.0)
    spread_x, spread_y = xx - x * x / safe, yy - y * y / safe
    varies = (spread_x > 1e-12 * safe) & (spread_y > 1e-12 * safe)
    below = np.sqrt(np.where(varies, spread_x * spread_y, 1.0))
    r = np.where(varies, np.clip((xy - x * y / safe) / below, -1.0, 1.0), 0.0)
    out: Floats = np.where(some, r, np.nan)
    return out
