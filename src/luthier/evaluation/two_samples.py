"""Whether two samples are of one kind, when their rows come in clusters: a user's requests are more alike than those of two users.

Tests shuffle whole clusters between the samples (a permutation test: exact when clusters are exchangeable, whatever the distribution), and
intervals resample whole clusters. Categories are compared by chi-square and the Jensen-Shannon distance (Lin 1991), numbers as deciles of
both samples together, also by the population stability index; vectors by the maximum mean discrepancy (Gretton et al. 2012, "A kernel
two-sample test") and by a classifier's area under the curve (Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample tests").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SHUFFLES = 2000
RESAMPLES = 1000
BINS = 10

_MOST_CELLS = 50_000_000
_FEWEST_SHUFFLES = 400
_CHUNK = 200


@dataclass(frozen=True)
class Samples:
    """Which cluster each row is of (codes from 0), and which clusters are of the second sample. A cluster is of one sample only."""

    cluster: Codes
    second: Flags
    seed: int = 0

    @property
    def clusters(self) -> int:
        """How many there are."""
        return len(self.second)

    @property
    def rows(self) -> Flags:
        """Which rows are of the second sample."""
        return self.second[self.cluster]

    @cached_property
    def shuffles(self) -> npt.NDArray[np.uint8]:
        """(shuffles, clusters): which clusters are of the second sample when chance decides; as many as in truth."""
        draw = np.random.default_rng(self.seed)
        count = max(_FEWEST_SHUFFLES, min(SHUFFLES, _MOST_CELLS // max(1, self.clusters)))
        return draw.permuted(np.tile(self.second.astype(np.uint8), (count, 1)), axis=1)

    def resamples(self) -> Iterator[Floats]:
        """How often each cluster is drawn when as many as there are of each sample are drawn again, a block of draws at a time."""
        draw = np.random.default_rng(self.seed + 1)
        for start in range(0, RESAMPLES, _CHUNK):
            size = min(_CHUNK, RESAMPLES - start)
            block = np.zeros((size, self.clusters))
            for side in (False, True):
                places = np.flatnonzero(self.second == side)
                block[:, places] = draw.multinomial(len(places), np.full(len(places), 1 / len(places)), size=size)
            yield block

    def only(self, rows: Flags) -> tuple[Samples, Flags]:
        """These rows, with their clusters numbered anew; and which of the old clusters are left."""
        left, cluster = np.unique(self.cluster[rows], return_inverse=True)
        kept = np.zeros(self.clusters, dtype=bool)
        kept[left] = True
        return Samples(cluster.astype(np.int64), self.second[left], self.seed), kept

    def sums(self, values: Floats) -> Floats:
        """(clusters, columns): the sums of rows (rows, columns) over each cluster."""
        out = np.zeros((self.clusters, values.shape[1]))
        np.add.at(out, self.cluster, values)
        return out


@dataclass(frozen=True)
class Shift:
    """How far two samples are apart. ``effect`` with its interval (level 0.95, clusters resampled); ``by_chance``: what 95% of shuffles stay
    below; ``p`` of the permutation test."""

    effect: float
    low: float
    high: float
    by_chance: float
    p: float


def compare_shares(
    samples: Samples, codes: Codes, kinds: int, effect: Callable[[Floats, Floats], Floats] | None = None
) -> Shift:
    """Whether rows are of the ``kinds`` categories in the same shares. The test's statistic is chi-square; the effect is the Jensen-Shannon
    distance unless another one is given: of counts (draws, kinds) of the first and the second sample."""
    effect = effect or jensen_shannon
    counts = samples.sums(np.eye(kinds)[codes])
    total = counts.sum(0)
    second = counts[samples.second].sum(0)
    shuffled = np.concatenate([block @ counts for block in _blocks(samples.shuffles)])
    observed = chi_square(second[None], total)[0]
    p = (1 + np.count_nonzero(chi_square(shuffled, total) >= observed * (1 - 1e-9) - 1e-12)) / (1 + len(shuffled))
    drawn = np.concatenate(
        [
            effect(
                block[:, ~samples.second] @ counts[~samples.second], block[:, samples.second] @ counts[samples.second]
            )
            for block in samples.resamples()
        ]
    )
    value = float(effect((total - second)[None], second[None])[0])
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    chance = effect(total - shuffled, shuffled)
    return Shift(
        value, float(min(low, value)), float(max(high, value)), float(np.nanquantile(np.abs(chance), 0.95)), float(p)
    )


def compare_rates(samples: Samples, flags: Flags) -> Shift:
    """Whether as large a share of the rows is flagged; the effect is the second share minus the first."""
    return compare_shares(samples, flags.astype(np.int64), 2, share_difference)


def compare_numbers(samples: Samples, values: Floats) -> Shift:
    """Whether numbers are distributed alike: by their deciles over both samples, with the population stability index as the effect."""
    codes, kinds = deciles(values)
    return compare_shares(samples, codes, kinds, stability_index)


def deciles(values: Floats) -> tuple[Codes, int]:
    """(bin of each value, number of bins): ten equally full ones, fewer where values are equal; of few values each is a bin."""
    distinct = np.unique(values)
    edges = distinct if len(distinct) <= BINS else np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    codes = np.searchsorted(edges, values, side="left")
    used, codes = np.unique(codes, return_inverse=True)
    return codes.astype(np.int64), len(used)


def chi_square(second: Floats, total: Floats) -> Floats:
    """Of tables of two rows: counts of the second sample (draws, kinds), and of both together (kinds,)."""
    size = second.sum(1, keepdims=True)
    out = np.zeros(len(second))
    for counts, rows in ((second, size), (total - second, total.sum() - size)):
        expected = rows * total / total.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            out += np.where(expected > 0, (counts - expected) ** 2 / expected, 0.0).sum(1)
    return out


def jensen_shannon(first: Floats, second: Floats) -> Floats:
    """The Jensen-Shannon distance (square root of the divergence, to base 2: 0 to 1) of counts (draws, kinds)."""
    p, q = _shares(first), _shares(second)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = sum(np.where(each > 0, each * np.log2(each / middle), 0.0).sum(1) / 2 for each in (p, q))
    out: Floats = np.sqrt(np.maximum(divergence, 0.0))
    return out


def stability_index(first: Floats, second: Floats) -> Floats:
    """The population stability index of counts (draws, kinds): sum of (q - p) ln(q / p), half a count added to each so that none is 0."""
    p, q = _shares(first + 0.5), _shares(second + 0.5)
    out: Floats = ((q - p) * np.log(q / p)).sum(1)
    return out


def share_difference(first: Floats, second: Floats) -> Floats:
    """The share of the last kind in the second sample minus that in the first."""
    out: Floats = _shares(second)[:, -1] - _shares(first)[:, -1]
    return out


def _shares(counts: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        out: Floats = counts / counts.sum(1, keepdims=True)
    return out


def _blocks(shuffles: npt.NDArray[np.uint8]) -> Iterator[Floats]:
    for start in range(0, len(shuffles), _CHUNK):
        yield shuffles[start : start + _CHUNK].astype(np.float64)


# ---- vectors


def kernel_of(vectors: Any) -> npt.NDArray[np.float32]:
    """(rows, rows): a Gaussian kernel of unit vectors (dense, or sparse), as wide as their median distance (Gretton et al. 2012, section 8)."""
    product = vectors @ vectors.T
    cosine = np.asarray(product.todense() if hasattr(product, "todense") else product, dtype=np.float32)
    squared = np.maximum(2.0 - 2.0 * cosine, 0.0)
    apart = squared[np.triu_indices(len(squared), 1)]
    width = float(np.median(apart)) or float(apart.mean()) or 1.0
    out: npt.NDArray[np.float32] = np.exp(-squared / width).astype(np.float32)
    return out


def compare_vectors(samples: Samples, kernel: npt.NDArray[np.float32]) -> Shift:
    """Whether vectors are distributed alike. The effect is the maximum mean discrepancy, squared, unbiased (Gretton et al. 2012, equation 3).

    The interval is that of the statistic over half samples of clusters: how stable it is, not how far it is from 0 (the p says that).
    """
    rows = samples.shuffles[:, samples.cluster]
    observed = _discrepancy(kernel, samples.rows[None].astype(np.float32))[0]
    chance = np.concatenate(
        [_discrepancy(kernel, rows[start : start + _CHUNK].astype(np.float32)) for start in range(0, len(rows), _CHUNK)]
    )
    p = (1 + np.count_nonzero(chance >= observed - 1e-9)) / (1 + len(chance))
    draw = np.random.default_rng(samples.seed + 2)
    halves = []
    for _ in range(50):
        chosen = draw.random(samples.clusters)[samples.cluster] < 0.5
        side = samples.rows[chosen]
        if side.sum() > 1 and (~side).sum() > 1:
            part = kernel[np.ix_(chosen, chosen)]
            halves.append(_discrepancy(part, side[None].astype(np.float32))[0])
    low, high = np.quantile(halves, [0.025, 0.975]) if halves else (observed, observed)
    return Shift(
        float(observed),
        float(min(low, observed)),
        float(max(high, observed)),
        float(np.quantile(chance, 0.95)),
        float(p),
    )


def _discrepancy(kernel: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> Floats:
    """(draws,) of (draws, rows): unbiased squared discrepancy, whose diagonal terms are left out."""
    weights = second @ kernel
    inner = np.einsum("ij,ij->i", weights, second, dtype=np.float64)
    everything = float(kernel.sum(dtype=np.float64))
    cross = weights.sum(1, dtype=np.float64) - inner
    outer = everything - inner - 2 * cross
    n = second.sum(1, dtype=np.float64)
    m = len(kernel) - n
    with np.errstate(divide="ignore", invalid="ignore"):
        out: Floats = (inner - n) / (n * (n - 1)) + (outer - m) / (m * (m - 1)) - 2 * cross / (n * m)
    return np.nan_to_num(out, nan=-np.inf)


def witness(kernel: npt.NDArray[np.float32], second: Flags) -> Floats:
    """(rows,): how much more a row is like the second sample than like the first; the rows that make the discrepancy are at its ends."""
    return np.asarray(kernel[:, second].mean(1) - kernel[:, ~second].mean(1), dtype=np.float64)


def separability(samples: Samples, vectors: Any) -> tuple[float, float, float]:
    """(area under the curve, low, high) of a logistic regression that tells the samples apart, in five folds that no cluster crosses. 0.5: it
    cannot. The interval resamples clusters."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    second = samples.rows
    folds = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=samples.seed)
    scores = cross_val_predict(
        LogisticRegression(max_iter=200, class_weight="balanced"), vectors, second, groups=samples.cluster, cv=folds,
        method="decision_function",
    )  # fmt: skip
    value = float(roc_auc_score(second, scores))
    drawn = []
    for block in samples.resamples():
        for counts in block[:50]:
            weights = counts[samples.cluster]
            if weights[second].any() and weights[~second].any():
                drawn.append(roc_auc_score(second, scores, sample_weight=weights))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return value, float(min(low, value)), float(max(high, value))


def detectable(first: int, second: int) -> float:
    """The smallest difference of a share near one half that a test at 0.05 sees four times in five, with so many clusters in the samples."""
    return float(min(1.0, (1.96 + 0.84) * np.sqrt(0.25 * (1 / max(first, 1) + 1 / max(second, 1)))))


def codes_of(values: Sequence[str], most: int = 40) -> tuple[Codes, list[str]]:
    """(code of each value, names): the most frequent values, and ``others`` for what is rarer."""
    from collections import Counter

    frequent = [name for name, _ in Counter(values).most_common(most)]
    names = sorted(frequent)
    place = {name: at for at, name in enumerate(names)}
    if any(value not in place for value in values):
        names.append("others")
    return np.array([place.get(value, len(names) - 1) for value in values], dtype=np.int64), names
