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
    expanded,
    holm,
    interval,
    jackknife,
    mcnemar,
    one_draw,
    paired_bootstrap,
    percentile_interval,
    permutation_test,
    resample_counts,
    wilson_interval,
)
from luthier.scorers._score import Answer, Figure, Target


def mean_of(values: np.ndarray):  # type: ignore[no-untyped-def, type-arg]
    return lambda counts: counts @ values / counts.sum(axis=1)


def macro_f1(answers: np.ndarray, targets: np.ndarray) -> Figure:  # type: ignore[type-arg]
    entry = catalog.load("scorers", "macro_f1")
    given, wanted = [Answer(str(a)) for a in answers], [Target(str(t)) for t in targets]
    return Figure(entry, entry.configure(), given, wanted, right(answers, targets))


def quick_macro_f1(answers: np.ndarray, targets: np.ndarray, labels: int = 4) -> Figure:  # type: ignore[type-arg]
    """The same with its sums made at once: a thousand tournaments would spend their time on making records."""
    entry = catalog.load("scorers", "macro_f1")
    figure = Figure(entry, entry.configure(), [Answer("0")], [Target("0")], [1.0])
    wanted, given = np.eye(labels)[targets], np.eye(labels)[answers]
    figure._sums = np.concatenate([wanted * given, wanted, given], axis=1)
    return figure


def right(answers: np.ndarray, targets: np.ndarray) -> list[float | None]:  # type: ignore[type-arg]
    return [float(a == t) for a, t in zip(answers, targets, strict=True)]


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


@pytest.mark.parametrize(("share", "examples"), [(0.5, 50), (0.97, 100), (0.0, 20), (1.0, 20), (1 / 3, 3)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_of_a_share_is_wilsons_as_scipy_and_statsmodels_have_it(
    share: float, examples: int, level: float
) -> None:
    from statsmodels.stats.proportion import proportion_confint

    ours = wilson_interval(share, examples, level)
    right = round(share * examples)
    theirs = stats.binomtest(right, examples).proportion_ci(level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx(proportion_confint(right, examples, 1 - level, "wilson"), abs=1e-12)


@pytest.mark.parametrize(("share", "examples"), [(1.1, 5), (-0.1, 5), (0.5, 0)])
def test_a_share_of_nothing_or_beyond_one_is_refused(share: float, examples: int) -> None:
    with pytest.raises(InputError, match="share must be between 0 and 1"):
        wilson_interval(share, examples)


def test_the_interval_of_a_mean_without_bounds_is_scipys_bca_a_little_wider() -> None:
    values = np.random.default_rng(0).gamma(2.0, 3.0, size=400)
    ours = bootstrap_interval(mean_of(values), 400, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=1).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    width = theirs.high - theirs.low
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02 * width)
    assert expanded(0.95, 400) == pytest.approx(stats.t.ppf(0.975, 399) * np.sqrt(400 / 399))
    assert expanded(0.95, 0) == pytest.approx(stats.norm.ppf(0.975))


def test_the_interval_of_a_correlation_is_nearly_fishers() -> None:
    """Fisher's z takes the error from normal theory, ours from the jackknife; on normal data they agree."""
    x, y = np.random.default_rng(2).multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 800).T
    sums = np.stack([np.ones(800), x, y, x * x, y * y, x * y], axis=1)

    def pearson(counts: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        n, a, b, aa, bb, ab = (counts @ sums).T
        return (n * ab - a * b) / np.sqrt((n * aa - a * a) * (n * bb - b * b))

    ours = bootstrap_interval(pearson, 800, resamples=200, bounds=(-1.0, 1.0))
    theirs = stats.pearsonr(x, y).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_the_interval_of_macro_f1_has_the_spread_of_resampling_by_hand() -> None:
    from sklearn.metrics import f1_score

    draw = np.random.default_rng(0)
    targets = draw.integers(0, 3, 300)
    answers = noisy(draw, targets, 0.6, 3)
    ours = bootstrap_interval(macro_f1(answers, targets), 300, scores=right(answers, targets), resamples=500)
    by_hand = []
    for _ in range(500):
        rows = draw.integers(0, 300, 300)
        by_hand.append(f1_score(targets[rows], answers[rows], average="macro"))
    assert ours.value == pytest.approx(f1_score(targets, answers, average="macro"))
    assert (ours.low, ours.high) == pytest.approx(np.quantile(by_hand, [0.025, 0.975]), abs=0.012)


def test_the_quick_figure_of_these_tests_is_the_figure() -> None:
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 4, 50)
    answers = noisy(draw, targets, 0.6, 4)
    counts = np.concatenate(list(resample_counts(50, 20)))
    assert quick_macro_f1(answers, targets)(counts) == pytest.approx(macro_f1(answers, targets)(counts))


def test_leaving_out_each_example_is_what_the_fast_way_says() -> None:
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 3, 40)
    figure = macro_f1(noisy(draw, targets, 0.6, 3), targets)
    slow = jackknife(figure.__call__, 40)  # a bare function has no left_out
    assert jackknife(figure, 40) == pytest.approx(slow)
    values = draw.normal(size=40)
    assert jackknife(mean_of(values), 40) == pytest.approx([(values.sum() - v) / 39 for v in values])


def test_a_perfect_figure_is_not_a_sure_one() -> None:
    """Resampling 50 right answers gives 1.0 every time; the truth may be 0.93."""
    everything = np.arange(50) % 3
    ours = bootstrap_interval(macro_f1(everything, everything), 50, scores=[1.0] * 50, resamples=100)
    assert (ours.value, ours.high) == (1.0, 1.0)
    assert ours.low == pytest.approx(wilson_interval(1.0, 50).low)
    none = interval(0.0, np.zeros(100), scores=[0.0] * 20)
    assert none.low == 0.0 and none.high == pytest.approx(wilson_interval(0.0, 20).high)


def test_examples_without_a_score_do_not_count() -> None:
    scores = [1.0] * 30 + [0.0] * 10 + [None] * 60
    found = interval(0.75, np.array([0.7, 0.8, np.nan]), scores=scores)
    assert (found.low, found.high) == pytest.approx((wilson_interval(0.75, 40).low, wilson_interval(0.75, 40).high))


def test_bounds_are_inferred_only_where_everything_is_within_them() -> None:
    draw = np.random.default_rng(0)
    values = draw.beta(2, 1, 60)
    inside = bootstrap_interval(mean_of(values), 60, scores=list(values), resamples=400)
    assert 0 < inside.low < inside.value < inside.high < 1
    assert inside.value - inside.low > inside.high - inside.value, "nearer to 1 the interval is longer below"
    beyond = bootstrap_interval(mean_of(values + 0.5), 60, scores=list(values + 0.5), resamples=400)
    assert beyond.high - beyond.low == pytest.approx(inside.high - inside.low, rel=0.1)


def test_what_does_not_vary_has_an_interval_of_one_point() -> None:
    constant = bootstrap_interval(mean_of(np.full(20, 7.0)), 20, resamples=50)
    assert (constant.low, constant.value, constant.high) == (7.0, 7.0, 7.0)
    half = bootstrap_interval(mean_of(np.full(20, 0.5)), 20, scores=[0.5] * 20, resamples=50)
    assert (half.low, half.high) == pytest.approx((0.5, 0.5))


def test_an_interval_always_holds_its_value() -> None:
    assert percentile_interval(0.9, np.array([0.1, 0.2, 0.3])).high == 0.9
    found = interval(0.9, np.array([0.1, 0.2, 0.3]))
    assert found.low <= 0.9 <= found.high


def test_large_sets_get_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.evaluation.statistics._MOST_CELLS", 500_000)
    assert bootstrap([mean_of(np.ones(100))], 100, 10_000).shape == (1, 5_000)
    assert bootstrap([mean_of(np.ones(1_000))], 1_000, 10_000).shape == (1, 1_000)
    assert bootstrap([mean_of(np.ones(1_000))], 1_000, 200).shape == (1, 200)


@pytest.mark.parametrize("examples", [50, 100, 280])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9, 0.95, 0.97])
def test_coverage_of_the_interval_of_an_accuracy(examples: int, share: float) -> None:
    """Exact: the probability of every number of right answers, summed where its interval holds the truth."""
    found = [
        interval(k / examples, np.zeros(1), scores=[1.0] * k + [0.0] * (examples - k)) for k in range(examples + 1)
    ]
    likely = stats.binom.pmf(range(examples + 1), examples, share)
    held = sum(p for p, f in zip(likely, found, strict=True) if f.low <= share <= f.high)
    assert 0.93 <= held <= 0.9705


@pytest.mark.parametrize(("examples", "accuracy"), [(50, 0.9), (50, 0.97), (150, 0.7)])
def test_coverage_of_the_interval_of_macro_f1(examples: int, accuracy: float) -> None:
    """Four equal labels with even errors: the true macro F1 is the accuracy. benchmarks/intervals.py has the whole table."""
    draw = np.random.default_rng(12)
    hits = percentile = 0
    for _ in range(600):
        targets = draw.integers(0, 4, examples)
        answers = np.where(draw.random(examples) < accuracy, targets, (targets + draw.integers(1, 4, examples)) % 4)
        figure = quick_macro_f1(answers, targets)
        replicates = bootstrap([figure], examples, 200)[0]
        whole = float(figure(one_draw(examples))[0])
        found = interval(whole, replicates, statistic=figure, scores=right(answers, targets))
        hits += found.low <= accuracy <= found.high
        percentile += (
            percentile_interval(whole, replicates).low <= accuracy <= percentile_interval(whole, replicates).high
        )
    assert 0.925 <= hits / 600 <= 0.975  # half a percent beyond the bar for what 600 sets can show
    assert hits >= percentile
    if accuracy == 0.97:
        assert percentile / 600 < 0.9, "why the percentile interval would not do"


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


def test_holm_is_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(12) ** 3
    assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1])


@pytest.mark.parametrize("gap", [0.0, 0.1, 0.3])
def test_the_permutation_test_is_scipys_and_near_the_bootstrap(gap: float) -> None:
    draw = np.random.default_rng(3)
    first = draw.normal(size=60)
    second = first - gap + draw.normal(size=60)
    ours = permutation_test(mean_of(np.concatenate([first, second])), 60, resamples=20_000)
    theirs = stats.permutation_test(
        (first, second), lambda a, b: a.mean() - b.mean(), permutation_type="samples", n_resamples=20_000, rng=1
    )
    assert ours == pytest.approx(theirs.pvalue, abs=0.015)
    paired = paired_bootstrap(mean_of(first), mean_of(second), 60, resamples=20_000)
    assert ours == pytest.approx(paired.p, abs=0.03)


def test_the_permutation_test_of_right_answers_is_mcnemars() -> None:
    first = np.array([1.0] * 12 + [0.0] * 3 + [1.0] * 40)
    second = np.array([0.0] * 12 + [1.0] * 3 + [1.0] * 40)
    ours = permutation_test(mean_of(np.concatenate([first, second])), 55, resamples=40_000)
    assert ours == pytest.approx(mcnemar(first > 0, second > 0), abs=0.004)


def test_a_resample_without_a_figure_is_left_out_of_a_comparison() -> None:
    replicates = np.array([[0.5, 0.6, 0.7, np.nan], [0.4, 0.6, 0.6, 0.5]])
    clean = compare([mean_of(np.ones(4))] * 2, 40, values=[0.6, 0.55], replicates=replicates[:, :3])[0]
    assert compare([mean_of(np.ones(4))] * 2, 40, values=[0.6, 0.55], replicates=replicates)[0] == clean


def test_mcnemar_is_the_sign_test_on_discordant_pairs() -> None:
    first = [True] * 12 + [False] * 3 + [True] * 40
    second = [False] * 12 + [True] * 3 + [True] * 40
    expected = 2 * sum(stats.binom.pmf(k, 15, 0.5) for k in range(4))
    assert mcnemar(first, second) == pytest.approx(expected) == pytest.approx(0.03515625)
    from statsmodels.stats.contingency_tables import mcnemar as theirs

    assert mcnemar(first, second) == pytest.approx(theirs([[40, 12], [3, 0]], exact=True).pvalue)
    assert mcnemar(first, first) == 1.0
    with pytest.raises(InputError, match="same examples; got 1 and 2"):
        mcnemar([True], [True, False])


def tournament_p(draw: np.random.Generator, entrants: int, examples: int, labels: int, gap: float = 0.0) -> list[float]:
    """Adjusted p of the leader against each other entrant, where the last is worse by ``gap`` and the others are equal."""
    targets = draw.integers(0, labels, examples)
    shared = noisy(draw, targets, 0.75, labels)
    right = [0.75] * (entrants - 1) + [0.75 - gap]
    systems = [np.where(draw.random(examples) < 0.4, shared, noisy(draw, targets, r, labels)) for r in right]
    statistics = [quick_macro_f1(system, targets) for system in systems]
    values = [float(s(one_draw(examples))[0]) for s in statistics]
    leader = int(np.argmax(values))
    found = compare(statistics, examples, values=values, resamples=500, seed=int(draw.integers(1 << 30)))
    return [d.p_adjusted for d in found if leader in (d.first, d.second)]


@pytest.mark.parametrize("entrants", [2, 5])
def test_tournaments_without_a_difference_seldom_find_one(entrants: int) -> None:
    draw = np.random.default_rng(2)
    found = sum(min(tournament_p(draw, entrants, 120, 4)) < 0.05 for _ in range(1000))
    assert found / 1000 <= 0.05


def test_with_three_examples_a_label_a_difference_is_still_not_invented() -> None:
    """Resampling alone sees too little of what 20 small labels vary: it finds a difference in 7% where there is none."""
    draw = np.random.default_rng(1)
    wrong = plain = 0
    for _ in range(400):
        targets = draw.integers(0, 20, 60)
        systems = [noisy(draw, targets, 0.7, 20) for _ in range(2)]
        figures = [quick_macro_f1(system, targets, 20) for system in systems]
        wrong += compare(figures, 60, resamples=400)[0].p < 0.05
        plain += compare([figure.__call__ for figure in figures], 60, resamples=400)[0].p < 0.05
    assert wrong / 400 <= 0.05 < plain / 400


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
        statistics = [quick_macro_f1(system, targets) for system in systems]
        values = [float(s(one_draw(120))[0]) for s in statistics]
        leader = int(np.argmax(values))
        pairs = compare(statistics, 120, values=values, resamples=500)
        wrong += min(holm([d.p for d in pairs if leader in (d.first, d.second)])) < 0.05
    assert wrong / 250 > 0.06
