"""Uncertainty of scores, and tests of differences between systems that answered the same examples.

Everything resamples examples, because the question is how the score would change with other examples of the same kind. A
statistic is a function from draw counts, shape (resamples, examples), to values, shape (resamples,): that turns a bootstrap of
thousands of resamples into a few matrix products. Seeds are fixed, so equal records give equal figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from luthier.core.errors import InputError

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.float32]
Statistic = Callable[[Counts], Floats]

RESAMPLES = 10_000  # for intervals
TEST_RESAMPLES = 50_000  # for p-values: ten pairs can then still reach an adjusted p of 0.0002
_CHUNK_CELLS = 2_000_000  # draw counts held at once: 8 MB
_MOST_CELLS = 200_000_000  # draws in all; larger sets get fewer resamples, and need fewer


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def as_dict(self) -> dict[str, float]:
        """Plain form for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "level": self.level}


@dataclass(frozen=True, slots=True)
class Difference:
    """``first`` minus ``second`` on the same examples; ``p`` two-sided, ``p_adjusted`` over all pairs that were compared."""

    first: int
    second: int
    value: float
    low: float
    high: float
    p: float
    p_adjusted: float


def resample_counts(examples: int, resamples: int, seed: int = 0) -> Iterator[Counts]:
    """How often each of ``examples`` is drawn when as many are drawn with replacement: blocks of shape (some, examples).

    The blocks together have ``resamples`` rows, the same for the same arguments.
    """
    if examples < 1:
        raise InputError(f"a bootstrap needs at least 1 example; got {examples}")
    draw = np.random.default_rng(seed)
    block = max(1, min(resamples, _CHUNK_CELLS // examples))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = draw.integers(0, examples, size=(rows, examples), dtype=np.int64)
        drawn += np.arange(rows, dtype=np.int64)[:, None] * examples
        counts = np.bincount(drawn.ravel(), minlength=rows * examples)
        yield counts.reshape(rows, examples).astype(np.float32)


def bootstrap(statistics: Sequence[Statistic], examples: int, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Every statistic on the same resamples, shape (statistics, resamples): rows can be compared pair by pair.

    At most 200 million draws are made, so large sets get fewer resamples (never under 1,000).
    """
    resamples = max(min(resamples, _MOST_CELLS // max(examples, 1)), min(resamples, 1000))
    blocks = [
        np.stack([statistic(counts) for statistic in statistics])
        for counts in resample_counts(examples, resamples, seed)
    ]
    return np.concatenate(blocks, axis=1)


def one_draw(examples: int) -> Counts:
    """Counts of the set itself, shape (1, examples)."""
    return np.ones((1, examples), dtype=np.float32)


def percentile_interval(value: float, replicates: Floats, level: float = 0.95) -> Interval:
    """The percentile interval (Efron, 1979): the middle ``level`` of the replicates, widened to hold ``value`` itself."""
    tail = (1.0 - level) / 2.0
    low, high = np.nanquantile(replicates, [tail, 1.0 - tail])  # a resample without anything to score has no figure
    return Interval(value, float(min(low, value)), float(max(high, value)), level)


def bootstrap_interval(
    statistic: Statistic, examples: int, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> Interval:
    """A statistic's value and percentile interval."""
    value = float(statistic(one_draw(examples))[0])
    return percentile_interval(value, bootstrap([statistic], examples, resamples, seed)[0], level)


def paired_bootstrap(
    first: Statistic, second: Statistic, examples: int, *, resamples: int = TEST_RESAMPLES, seed: int = 0
) -> Difference:
    """The difference of two systems on the same examples."""
    return compare([first, second], examples, resamples=resamples, seed=seed)[0]


def compare(
    statistics: Sequence[Statistic],
    examples: int,
    *,
    values: Sequence[float] | None = None,
    replicates: Floats | None = None,
    resamples: int = TEST_RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """Every pair of systems that answered the same examples, with Holm's adjustment over all pairs.

    p is the share of resamples whose difference is as far from the observed one as that is from zero (the bootstrap null
    centred; Efron and Tibshirani, 1993, ch. 16), with the observation counted in, so never 0. The family is *all* pairs, also when
    only those with the leader are of interest, because which one leads is seen in the same data: adjusting over the leader's pairs
    alone finds a difference in about 10% of five-entrant tournaments that have none (tests/evaluation/test_statistics.py).
    """
    if replicates is None:
        replicates = bootstrap(statistics, examples, resamples, seed)
    if values is None:
        values = [float(statistic(one_draw(examples))[0]) for statistic in statistics]
    pairs = list(combinations(range(len(statistics)), 2))
    raw = []
    for i, j in pairs:
        observed = values[i] - values[j]
        drawn = replicates[i] - replicates[j]
        extreme = int(np.count_nonzero(np.abs(drawn - observed) >= abs(observed) - 1e-12))
        p = (extreme + 1) / (len(drawn) + 1)
        bounds = percentile_interval(observed, drawn)
        raw.append(Difference(i, j, observed, bounds.low, bounds.high, p, p))
    adjusted = holm([d.p for d in raw])
    return [Difference(d.first, d.second, d.value, d.low, d.high, d.p, a) for d, a in zip(raw, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): reject where the result is below the level; the family-wise error keeps to it."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    out = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        out[index] = largest
    return out


def mcnemar(first_right: Sequence[bool], second_right: Sequence[bool]) -> float:
    """Exact two-sided p of McNemar's test (1947) that two systems are right equally often on the same examples.

    A sign test on the examples where exactly one is right; 1.0 when there are none. Raises InputError for unequal lengths.
    """
    if len(first_right) != len(second_right):
        raise InputError(f"McNemar's test needs the same examples; got {len(first_right)} and {len(second_right)}")
    only_first = sum(a and not b for a, b in zip(first_right, second_right, strict=True))
    only_second = sum(b and not a for a, b in zip(first_right, second_right, strict=True))
    if only_first + only_second == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)
