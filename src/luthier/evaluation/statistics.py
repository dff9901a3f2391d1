"""Uncertainty of scores, and tests of differences between systems that answered the same examples.

Everything resamples examples, because the question is how the score would change with other examples of the same kind. A
statistic is a function from draw counts, shape (resamples, examples), to values, shape (resamples,): that turns a bootstrap of
thousands of resamples into a few matrix products. Seeds are fixed, so equal records give equal figures.

Each kind of figure has one kind of interval (``interval``), chosen by simulation: ``benchmarks/intervals.py`` prints how often each
holds the true figure. The plain percentile interval of a macro F1 of 0.97 on 50 examples holds it in 77% of the cases, not in 95%.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
_MOST_JACKKNIFE = 5_000  # examples; beyond, the bootstrap's spread is as good
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


def expanded(level: float, examples: int) -> float:
    """The normal quantile that a bootstrap of ``examples`` needs for ``level``: a resample varies less than a sample does, by
    sqrt((n - 1) / n), and its spread is itself an estimate, hence Student's t (Hesterberg, 2015, section 3.2)."""
    from scipy.special import ndtri, stdtrit

    tail = (1.0 + level) / 2.0
    if examples < 2:
        return float(ndtri(tail))
    return float(stdtrit(examples - 1, tail)) * math.sqrt(examples / (examples - 1))


def wilson_interval(share: float, examples: float, level: float = 0.95) -> Interval:
    """The score interval of a share of ``examples`` (Wilson, 1927): the shares that a z-test does not refuse.

    Raises InputError for a share outside 0 to 1, or without examples.
    """
    if not 0.0 <= share <= 1.0 or examples <= 0:
        raise InputError(f"share must be between 0 and 1, of some examples; got {share} of {examples}")
    from scipy.special import ndtri

    z2 = float(ndtri((1.0 + level) / 2.0)) ** 2 / examples
    centre = (share + z2 / 2.0) / (1.0 + z2)
    half = math.sqrt(z2 * (share * (1.0 - share) + z2 / 4.0)) / (1.0 + z2)
    return Interval(share, min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share), level)


def jackknife(statistic: Statistic, examples: int) -> Floats:
    """The figure without each of the examples in turn, shape (examples,); a statistic that has ``left_out`` gives it at once."""
    quick = getattr(statistic, "left_out", None)
    if quick is not None:
        return np.asarray(quick(), dtype=np.float64)
    rows = max(1, min(examples, _CHUNK_CELLS // max(examples, 1)))
    out = []
    for start in range(0, examples, rows):
        some = min(rows, examples - start)
        counts = np.ones((some, examples), dtype=np.float32)
        counts[np.arange(some), start + np.arange(some)] = 0.0
        out.append(statistic(counts))
    return np.concatenate(out)


def interval(
    value: float,
    replicates: Floats,
    *,
    statistic: Statistic | None = None,
    scores: Sequence[float | None] | None = None,
    bounds: tuple[float, float] | None = None,
    level: float = 0.95,
) -> Interval:
    """The interval of a figure, by what the figure is. ``replicates`` are the figure in resamples (``bootstrap``).

    - A share of right answers (``scores``, the examples' own, are 0 or 1, and the figure is their mean): Wilson's score interval.
    - Another figure between ``bounds`` (macro F1, token F1; inferred as 0 to 1 when all scores and replicates are, a correlation has
      to say -1 to 1): Wilson's with the effective number of examples, the one at which a share would have the jackknife's standard
      error (Kish, 1965; Dean and Pagano, 2015). At a bound, where nothing varies, with the number of examples.
    - Everything else (perplexity, BLEU): the bias-corrected and accelerated bootstrap (Efron, 1987), expanded for small sets.

    ``statistic`` lets the jackknife run; without it, and beyond 5,000 examples, the replicates' spread stands in and the acceleration
    is 0. Examples whose score is None are not counted.
    """
    drawn = replicates[np.isfinite(replicates)]
    known = np.array([s for s in scores or () if s is not None], dtype=np.float64)
    examples = len(known) if scores is not None else 0
    if examples and bool(np.isin(known, (0.0, 1.0)).all()) and abs(float(known.mean()) - value) < 1e-9:
        return wilson_interval(float(known.mean()), examples, level)
    if bounds is None and examples and _within(known) and _within(drawn) and 0.0 <= value <= 1.0:
        bounds = (0.0, 1.0)
    left_out = None
    if statistic is not None and scores is not None and 1 < len(scores) <= _MOST_JACKKNIFE:
        left_out = jackknife(statistic, len(scores))
        left_out = left_out[np.isfinite(left_out)]
    if bounds is not None:
        return _bounded_interval(value, _standard_error(drawn, left_out), examples or len(drawn), bounds, level)
    return _accelerated_interval(value, drawn, left_out, examples, level)


def _within(values: Floats) -> bool:
    return bool(((values >= 0.0) & (values <= 1.0)).all())


def _standard_error(drawn: Floats, left_out: Floats | None) -> float:
    """The jackknife's standard error (Tukey, 1958), or the bootstrap's."""
    if left_out is None or len(left_out) < 2:
        return float(drawn.std()) if len(drawn) else 0.0
    return math.sqrt((len(left_out) - 1) * float(left_out.var()))


def _bounded_interval(value: float, error: float, examples: int, bounds: tuple[float, float], level: float) -> Interval:
    low, width = bounds[0], bounds[1] - bounds[0]
    share = min(max((value - low) / width, 0.0), 1.0)
    if share in (0.0, 1.0):
        found = wilson_interval(share, max(examples, 1), level)
    elif error == 0.0:
        return Interval(value, value, value, level)
    else:
        found = wilson_interval(share, share * (1.0 - share) / (error / width) ** 2, level)
    return Interval(value, low + width * found.low, low + width * found.high, level)


def _accelerated_interval(
    value: float, drawn: Floats, left_out: Floats | None, examples: int, level: float
) -> Interval:
    from scipy.special import ndtr, ndtri

    if not len(drawn) or drawn.min() == drawn.max():
        return Interval(value, value, value, level)
    below = (np.count_nonzero(drawn < value) + 0.5 * np.count_nonzero(drawn == value)) / len(drawn)
    bias = float(ndtri(min(max(below, 1.0 / len(drawn)), 1.0 - 1.0 / len(drawn))))
    acceleration = 0.0
    if left_out is not None and len(left_out) > 2 and left_out.std() > 0:
        pull = left_out.mean() - left_out
        acceleration = float((pull**3).sum() / (6.0 * (pull**2).sum() ** 1.5))
    reach = expanded(level, examples) * np.array([-1.0, 1.0])
    tails = ndtr(bias + (bias + reach) / (1.0 - acceleration * (bias + reach)))
    low, high = np.quantile(drawn, tails)
    return Interval(value, float(min(low, value)), float(max(high, value)), level)


def bootstrap_interval(
    statistic: Statistic,
    examples: int,
    *,
    scores: Sequence[float | None] | None = None,
    bounds: tuple[float, float] | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A statistic's value and interval, see ``interval``; without ``scores`` it is taken for a figure without bounds."""
    value = float(statistic(one_draw(examples))[0])
    replicates = bootstrap([statistic], examples, resamples, seed)[0]
    own = [float("nan")] * examples if scores is None else scores
    return interval(value, replicates, statistic=statistic, scores=own, bounds=bounds, level=level)


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

    p is the share of resamples whose difference is as far from the observed one as that is from zero (the bootstrap null centred;
    Efron and Tibshirani, 1993, ch. 16), with the observation counted in, so never 0, and stretched for small sets and small labels
    (``_difference``). The family is *all* pairs, also when only those with the leader are of interest, because which one leads is
    seen in the same data: adjusting over the leader's pairs alone finds a difference in about 10% of five-entrant tournaments that
    have none (tests/evaluation/test_statistics.py).
    """
    if replicates is None:
        replicates = bootstrap(statistics, examples, resamples, seed)
    if values is None:
        values = [float(statistic(one_draw(examples))[0]) for statistic in statistics]
    quick = [jackknife(s, examples) if hasattr(s, "left_out") else None for s in statistics]
    raw = []
    for i, j in combinations(range(len(statistics)), 2):
        one, other = quick[i], quick[j]
        left_out = None if one is None or other is None else one - other
        raw.append(_difference(i, j, values[i] - values[j], replicates[i] - replicates[j], examples, left_out))
    return adjusted(raw)


def _difference(
    first: int,
    second: int,
    observed: float,
    drawn: Floats,
    examples: int,
    left_out: Floats | None = None,
    level: float = 0.95,
) -> Difference:
    """One pair. The spread of the resamples is stretched for small sets, and to the jackknife's where that is larger: with three
    examples a label, resampling sees too little of what a macro average varies."""
    from scipy.special import ndtr, ndtri

    drawn = drawn[np.isfinite(drawn)]  # a resample without anything to score has no figure
    reach, spread = expanded(level, examples), float(drawn.std())
    if left_out is not None and spread > 0:
        left_out = left_out[np.isfinite(left_out)]
        small = math.sqrt(examples / max(examples - 1, 1))  # of which ``reach`` knows already
        reach *= max(1.0, _standard_error(drawn, left_out) / spread / small)
    wider = reach / float(ndtri((1.0 + level) / 2.0))
    extreme = int(np.count_nonzero(np.abs(drawn - observed) * wider >= abs(observed) - 1e-12))
    p = (extreme + 1) / (len(drawn) + 1)
    bounds = percentile_interval(observed, drawn, 1.0 - 2.0 * float(ndtr(-reach)))
    return Difference(first, second, observed, bounds.low, bounds.high, p, p)


def adjusted(differences: Sequence[Difference]) -> list[Difference]:
    """The same differences with Holm's adjustment over all of them."""
    levels = holm([d.p for d in differences])
    return [replace(d, p_adjusted=p) for d, p in zip(differences, levels, strict=True)]


def permutation_test(both: Statistic, examples: int, *, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p that two systems' answers to the same examples are exchangeable (approximate randomisation, Noreen, 1989).

    ``both`` is the statistic over 2 x ``examples`` records, first one system's, then the other's: each resample gives every example's two
    answers to the systems anew. It assumes more than the bootstrap (equal answers in distribution, not only equal figures) and keeps
    the level exactly; the two agree where both apply.
    """
    draw = np.random.default_rng(seed)
    observed = np.ones((1, 2 * examples), dtype=np.float32)
    observed[:, examples:] = 0.0
    gap = abs(float(both(observed)[0] - both(1.0 - observed)[0]))
    extreme = drawn = 0
    rows = max(1, min(resamples, _CHUNK_CELLS // (2 * examples)))
    for start in range(0, resamples, rows):
        kept = draw.random((min(rows, resamples - start), examples)) < 0.5
        counts = np.concatenate([kept, ~kept], axis=1).astype(np.float32)
        gaps = both(counts) - both(1.0 - counts)
        gaps = gaps[np.isfinite(gaps)]
        extreme += int(np.count_nonzero(np.abs(gaps) >= gap - 1e-12))
        drawn += len(gaps)
    return (extreme + 1) / (drawn + 1)


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
