"""chrF: F-score over character n-grams, over the whole set; suits every language, Chinese too (0 to 1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Answer, Floats, Score, Target
from luthier.scorers._words import reference_texts


class Config(EntryConfig):
    """``order`` is the longest n-gram of characters, ``beta`` how many times recall weighs more than precision; spaces do not count.

    Papers print a hundred times this figure. Examples with an empty reference are left out.
    """

    order: int = Field(default=6, ge=1, le=12)
    beta: float = Field(default=2.0, gt=0.0, le=10.0)
    lowercase: bool = False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """chrF of one answer with the reference that fits best; None without a reference. A set has ``combine`` instead."""
    counts = _counted(answer, target, config)
    if counts is None:
        return Score(None, {"reason": "the reference is empty"})
    return Score(float(_f_scores(counts[None], config)[0]))


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """For each order three columns: n-grams of the answer, of the reference, common."""
    out = np.zeros((len(answers), 3 * config.order))
    for row, (answer, target) in enumerate(zip(answers, targets, strict=True)):
        found = _counted(answer, target, config)
        if found is not None:
            out[row] = found
    return out


def combine(totals: Floats, config: Config) -> Floats:
    """Corpus chrF (Popović, 2015) of each row, as ``sacrebleu.corpus_chrf``; ``nan`` without references."""
    return np.where(totals[:, 1] > 0, _f_scores(totals, config), np.nan)


def _f_scores(totals: Floats, config: Config) -> Floats:
    """Means of precision and recall over the orders that both sides have, then F beta."""
    given, wanted, common = np.moveaxis(totals.reshape(len(totals), -1, 3), 2, 0)
    both = (given > 0) & (wanted > 0)
    orders = np.maximum(both.sum(axis=1), 1)
    precision = np.divide(common, given, out=np.zeros(common.shape), where=both).sum(axis=1) / orders
    recall = np.divide(common, wanted, out=np.zeros(common.shape), where=both).sum(axis=1) / orders
    squared = config.beta**2
    below = squared * precision + recall
    figures: Floats = np.divide(
        (1 + squared) * precision * recall, below, out=np.zeros(len(totals)), where=precision + recall > 0
    )
    return figures


def _counted(answer: Answer, target: Target, config: Config) -> Floats | None:
    """Counts with the reference whose F-score is best."""
    given = _grams(answer.text, config)
    rows = []
    for text in reference_texts(target.accepted):
        wanted = _grams(text, config)
        row = [[a.total() if b else 0, b.total(), (a & b).total()] for a, b in zip(given, wanted, strict=True)]
        rows.append(np.array(row, dtype=np.float64).ravel())
    return max(rows, key=lambda row: float(_f_scores(row[None], config)[0]), default=None)


def _grams(text: str, config: Config) -> list[Counter[str]]:
    text = "".join((text.lower() if config.lowercase else text).split())
    return [Counter(text[i : i + n] for i in range(len(text) - n + 1)) for n in range(1, config.order + 1)]
