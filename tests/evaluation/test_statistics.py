from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from luthier.core import catalog
from luthier.core.errors import InputError
from luthier.evaluation.statistics import (
    bootstrap,
    bootstrap_interval,
    compare,
    holm,
    mcnemar,
    one_draw,
    paired_bootstrap,
    percentile_interval,
    resample_counts,
)
from luthier.scorers._score import Resampler


def mean_of(values: np.ndarray):  # type: ignore[no-untyped-def, type-arg]
    return lambda counts: counts @ values / counts.sum(axis=1)


def macro_f1(answers: np.ndarray, targets: np.ndarray) -> Resampler:  # type: ignore[type-arg]
    entry = catalog.load("scorers", "macro_f1")
    return Resampler(entry, entry.configure(), [str(a) for a in answers], [str(t) for t in targets])


def noisy(draw: np.random.Generator, targets: np.ndarray, right: float, labels: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.where(draw.random(len(targets)) < right, targets, draw.integers(0, labels, len(targets)))


def test_every_resample_draws_as_many_as_there_are_and_repeats_with_its_seed() -> None:
    blocks = list(resample_counts(7, 100, seed=3))
    counts = np.concatenate(blocks)
    assert counts.shape == (100, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert np.array_equal(counts, np.concatenate(list(resample_counts(7, 100, seed=3))))
    assert not np.array_equal(counts, np.concatenate(list(resample_counts(7, 100, seed=4))))
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.4)


def test_blocks_hold_few_rows_of_large_sets() -> None:
    blocks = list(resample_counts(1_500_000, 3))
    assert [len(b) for b in blocks] == [1, 1, 1]


def test_a_bootstrap_needs_examples() -> None:
    with pytest.raises(InputError, match="at least 1 example"):
        bootstrap([mean_of(np.array([]))], 0, 10)


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(0).normal(size=80)
    ours = bootstrap_interval(mean_of(values), 80, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_the_interval_of_macro_f1_is_that_of_resampling_by_hand() -> None:
    from sklearn.metrics import f1_score

    draw = np.random.default_rng(0)
    targets = draw.integers(0, 3, 90)
    answers = noisy(draw, targets, 0.6, 3)
    ours = bootstrap_interval(macro_f1(answers, targets), 90, resamples=5_000)
    by_hand = []
    for _ in range(1_000):
        rows = draw.integers(0, 90, 90)
        by_hand.append(f1_score(targets[rows], answers[rows], average="macro"))
    assert ours.value == pytest.approx(f1_score(targets, answers, average="macro"))
    assert (ours.low, ours.high) == pytest.approx(np.quantile(by_hand, [0.025, 0.975]), abs=0.015)


def test_an_interval_always_holds_its_value() -> None:
    assert percentile_interval(0.9, np.array([0.1, 0.2, 0.3])).high == 0.9
    perfect = bootstrap_interval(mean_of(np.ones(10)), 10, resamples=100)
    assert (perfect.low, perfect.value, perfect.high) == (1.0, 1.0, 1.0)


def test_large_sets_get_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.evaluation.statistics._MOST_CELLS", 500_000)
    assert bootstrap([mean_of(np.ones(100))], 100, 10_000).shape == (1, 5_000)
    assert bootstrap([mean_of(np.ones(1_000))], 1_000, 10_000).shape == (1, 1_000)
    assert bootstrap([mean_of(np.ones(1_000))], 1_000, 200).shape == (1, 200)


def test_coverage_of_the_interval() -> None:
    draw = np.random.default_rng(11)
    hits = 0
    for trial in range(400):
        values = (draw.random(150) < 0.7).astype(float)
        found = bootstrap_interval(mean_of(values), 150, resamples=600, seed=trial)
        hits += found.low <= 0.7 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize("gap", [0.0, 0.06, 0.15])
def test_the_paired_p_value_is_near_the_paired_t_tests(gap: float) -> None:
    draw = np.random.default_rng(5)
    first = draw.normal(size=600)
    second = first - gap + draw.normal(size=600)
    ours = paired_bootstrap(mean_of(first), mean_of(second), 600, resamples=20_000)
    assert ours.value == pytest.approx(first.mean() - second.mean())
    assert ours.p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=0.012)
    assert (ours.low <= 0 <= ours.high) == (ours.p > 0.05)


def test_equal_systems_have_p_one_and_p_is_never_zero() -> None:
    values = np.random.default_rng(0).random(50)
    assert paired_bootstrap(mean_of(values), mean_of(values), 50, resamples=200).p == 1.0
    assert paired_bootstrap(mean_of(values + 1), mean_of(values), 50, resamples=200).p == pytest.approx(1 / 201)


def test_holm_worked_by_hand() -> None:
    # sorted: .01 x4 = .04, .02 x3 = .06, .03 x2 = .06, .04 x1 -> .06 (never below the one before)
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_mcnemar_is_the_sign_test_on_discordant_pairs() -> None:
    first = [True] * 12 + [False] * 3 + [True] * 40
    second = [False] * 12 + [True] * 3 + [True] * 40
    expected = 2 * sum(stats.binom.pmf(k, 15, 0.5) for k in range(4))
    assert mcnemar(first, second) == pytest.approx(expected) == pytest.approx(0.03515625)
    assert mcnemar(first, first) == 1.0
    with pytest.raises(InputError, match="same examples; got 1 and 2"):
        mcnemar([True], [True, False])


def tournament_p(draw: np.random.Generator, entrants: int, examples: int, labels: int, gap: float = 0.0) -> list[float]:
    """Adjusted p of the leader against each other entrant, where the last is worse by ``gap`` and the others are equal."""
    targets = draw.integers(0, labels, examples)
    shared = noisy(draw, targets, 0.75, labels)
    right = [0.75] * (entrants - 1) + [0.75 - gap]
    systems = [np.where(draw.random(examples) < 0.4, shared, noisy(draw, targets, r, labels)) for r in right]
    statistics = [macro_f1(system, targets) for system in systems]
    values = [float(s(one_draw(examples))[0]) for s in statistics]
    leader = int(np.argmax(values))
    found = compare(statistics, examples, values=values, resamples=500, seed=int(draw.integers(1 << 30)))
    return [d.p_adjusted for d in found if leader in (d.first, d.second)]


@pytest.mark.parametrize("entrants", [2, 5])
def test_tournaments_without_a_difference_seldom_find_one(entrants: int) -> None:
    draw = np.random.default_rng(2)
    found = sum(min(tournament_p(draw, entrants, 120, 4)) < 0.05 for _ in range(1000))
    assert found / 1000 <= 0.05


def test_a_true_difference_is_found() -> None:
    draw = np.random.default_rng(2)
    assert sum(min(tournament_p(draw, 5, 250, 4, gap=0.3)) < 0.05 for _ in range(20)) >= 18


def test_adjusting_over_the_leaders_pairs_alone_would_not_do() -> None:
    """Why the family is all pairs: the leader is picked by looking."""
    draw = np.random.default_rng(2)
    wrong = 0
    for _ in range(250):
        targets = draw.integers(0, 4, 120)
        systems = [noisy(draw, targets, 0.75, 4) for _ in range(5)]
        statistics = [macro_f1(system, targets) for system in systems]
        values = [float(s(one_draw(120))[0]) for s in statistics]
        leader = int(np.argmax(values))
        pairs = compare(statistics, 120, values=values, resamples=500)
        wrong += min(holm([d.p for d in pairs if leader in (d.first, d.second)])) < 0.05
    assert wrong / 250 > 0.06
