from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import binomtest, chi2_contingency
from sklearn.metrics import roc_auc_score

from luthier.evaluation import two_samples
from luthier.evaluation.two_samples import (
    Samples,
    chi_square,
    codes_of,
    compare_numbers,
    compare_rates,
    compare_shares,
    compare_vectors,
    deciles,
    detectable,
    jensen_shannon,
    kernel_of,
    separability,
    share_difference,
    stability_index,
    witness,
)


def clustered(draw, clusters: int, size: int, seed: int = 0) -> Samples:
    """Half of the clusters in each sample, ``size`` rows each."""
    return Samples(np.repeat(np.arange(clusters), size), np.arange(clusters) >= clusters // 2, seed)


def test_statistics_are_those_of_scipy() -> None:
    first, second = np.array([30.0, 12.0, 8.0]), np.array([20.0, 25.0, 5.0])
    assert chi_square(second[None], first + second)[0] == pytest.approx(
        chi2_contingency([first, second], correction=False).statistic
    )
    assert jensen_shannon(first[None], second[None])[0] == pytest.approx(jensenshannon(first, second, base=2))
    p, q = (first + 0.5) / (first + 0.5).sum(), (second + 0.5) / (second + 0.5).sum()
    assert stability_index(first[None], second[None])[0] == pytest.approx(
        sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True))
    )
    assert share_difference(np.array([[6.0, 4.0]]), np.array([[5.0, 5.0]]))[0] == pytest.approx(0.1)


def test_the_discrepancy_is_the_papers_formula() -> None:
    """Gretton et al. 2012, equation 3, term by term."""
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(30, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kernel = kernel_of(vectors.astype(np.float32))
    side = np.arange(30) >= 18
    x, y = np.flatnonzero(~side), np.flatnonzero(side)
    inner = sum(kernel[i, j] for i in x for j in x if i != j) / (18 * 17)
    outer = sum(kernel[i, j] for i in y for j in y if i != j) / (12 * 11)
    cross = sum(kernel[i, j] for i in x for j in y) * 2 / (18 * 12)
    shift = compare_vectors(Samples(np.arange(30), side), kernel)
    assert shift.effect == pytest.approx(inner + outer - cross, abs=1e-5)
    like = witness(kernel, side)
    assert like[0] == pytest.approx(kernel[0, side].mean() - kernel[0, ~side].mean(), abs=1e-6)


@pytest.mark.parametrize("kind", ["shares", "numbers", "vectors"])
def test_chance_alarms_at_the_stated_level_though_rows_of_a_cluster_are_alike(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 pairs of samples of one kind: about 5% below 0.05. A test that took rows for independent would alarm in most."""
    monkeypatch.setattr(two_samples, "SHUFFLES", 200)
    monkeypatch.setattr(two_samples, "_FEWEST_SHUFFLES", 200)
    monkeypatch.setattr(two_samples, "RESAMPLES", 2)
    alarms, naive = 0, 0
    for seed in range(300):
        draw = np.random.default_rng(seed)
        samples = clustered(draw, 40, 6, seed)
        if kind == "shares":
            own = draw.integers(0, 3, 40)[samples.cluster]
            codes = np.where(draw.random(240) < 0.9, own, draw.integers(0, 3, 240))
            p = compare_shares(samples, codes, 3).p
            table = [np.bincount(codes[samples.rows == side], minlength=3) for side in (False, True)]
            naive += chi2_contingency(table).pvalue <= 0.05
        elif kind == "numbers":
            p = compare_numbers(samples, draw.normal(size=40)[samples.cluster] + 0.2 * draw.normal(size=240)).p
        else:
            vectors = draw.normal(size=(40, 5))[samples.cluster] + 0.2 * draw.normal(size=(240, 5))
            p = compare_vectors(
                samples, kernel_of((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
            ).p
        alarms += p <= 0.05
    assert binomtest(alarms, 300, 0.05).pvalue > 0.001, alarms
    if kind == "shares":
        assert naive > 90


def test_true_changes_are_seen_with_intervals_around_them() -> None:
    draw = np.random.default_rng(0)
    samples = clustered(draw, 400, 2)
    flags = draw.random(800) < np.where(samples.rows, 0.35, 0.15)
    shift = compare_rates(samples, flags)
    assert shift.p < 0.01
    assert shift.low < 0.2 < shift.high
    assert abs(shift.effect - (flags[samples.rows].mean() - flags[~samples.rows].mean())) < 1e-12
    assert shift.by_chance < shift.effect
    numbers = draw.normal(size=800) + samples.rows
    assert compare_numbers(samples, numbers).p < 0.01
    wider = draw.normal(size=800) * np.where(samples.rows, 2.0, 1.0)  # the same middle
    assert compare_numbers(samples, wider).p < 0.01


def test_intervals_hold_the_truth_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_samples, "SHUFFLES", 5)
    monkeypatch.setattr(two_samples, "_FEWEST_SHUFFLES", 5)
    held = 0
    for seed in range(150):
        draw = np.random.default_rng(seed)
        samples = clustered(draw, 120, 4, seed)
        rate = np.clip(np.where(samples.second, 0.5, 0.3) + draw.normal(0, 0.15, 120), 0, 1)[samples.cluster]
        shift = compare_rates(samples, draw.random(480) < rate)
        held += shift.low <= 0.2 <= shift.high
    assert 0.88 <= held / 150 <= 1.0


def test_a_classifier_tells_apart_what_differs_only() -> None:
    draw = np.random.default_rng(0)
    samples = clustered(draw, 60, 4)
    same = draw.normal(size=(60, 6))[samples.cluster] + 0.1 * draw.normal(size=(240, 6))
    value, low, high = separability(samples, same)
    assert low <= 0.5 <= high, "clusters do not leak between the folds"
    other = same + samples.rows[:, None] * 2.0
    value, low, high = separability(samples, other)
    assert 0.9 < low <= value <= high
    assert value <= roc_auc_score(samples.rows, other.sum(1)) + 0.1


def test_bins_codes_and_what_can_be_seen() -> None:
    codes, kinds = deciles(np.arange(100.0))
    assert (kinds, np.bincount(codes).tolist()) == (10, [10] * 10)
    assert deciles(np.array([0.0] * 95 + [1.0] * 5))[1] == 2
    codes, names = codes_of(["b"] * 3 + ["a"] * 2 + ["rare"], most=2)
    assert (names, codes.tolist()) == (["a", "b", "others"], [1, 1, 1, 0, 0, 2])
    assert detectable(400, 400) == pytest.approx(2.8 * np.sqrt(0.5 / 400))


def test_some_rows_only() -> None:
    samples = Samples(np.array([0, 0, 1, 2, 2]), np.array([False, True, True]))
    part, kept = samples.only(np.array([True, False, False, True, False]))
    assert part.cluster.tolist() == [0, 1]
    assert part.second.tolist() == [False, True]
    assert kept.tolist() == [True, False, True]
