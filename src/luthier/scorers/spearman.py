"""Spearman's rank correlation between the numbers that answers give and those of the targets: is the order right?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.scorers import _correlation
from luthier.scorers._score import Answer, Counts, Floats, Score, Target

Config = _correlation.Correlated

BOUNDS = (-1.0, 1.0)


def score(answer: Answer, target: Target, config: Config) -> Score:
    """How near the two numbers are, 1.0 when equal; None without a number. The figure of a set is ``aggregate``."""
    return _correlation.nearness(answer, target, config)


def aggregate(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> float:
    """Spearman's rho, as ``scipy.stats.spearmanr`` (equal values share their mean rank); ``nan`` below two numbers."""
    return float(resampled(answers, targets, np.ones((1, len(answers)), dtype=np.float32), config)[0])


def resampled(answers: Sequence[Answer], targets: Sequence[Target], counts: Counts, config: Config) -> Floats:
    """Rho of each resample. Ranks are those among the examples that it drew, so they are made anew for each row."""
    given, wanted, known = _correlation.columns(answers, targets, config)
    keep = known > 0
    drawn = counts[:, keep].astype(np.float64)
    if not keep.any():
        return np.full(len(counts), np.nan)
    x, y = _ranks(given[keep], drawn), _ranks(wanted[keep], drawn)
    total = np.maximum(drawn.sum(axis=1, keepdims=True), 1.0)
    x = (x - (drawn * x).sum(axis=1, keepdims=True) / total) / total
    y = (y - (drawn * y).sum(axis=1, keepdims=True) / total) / total
    sums = [drawn, drawn * x, drawn * y, drawn * x * x, drawn * y * y, drawn * x * y]
    return _correlation.correlation(np.stack([part.sum(axis=1) for part in sums], axis=-1))


def _ranks(values: Floats, drawn: Floats) -> Floats:
    """Mean ranks, shape of ``drawn`` (resamples, values), when value i occurs ``drawn[:, i]`` times."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(drawn[:, order], starts, axis=1)
    ranks: Floats = (np.cumsum(sizes, axis=1) - (sizes - 1.0) / 2.0)[:, group]
    return ranks
