from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from luthier.core.errors import InputError
from luthier.evaluation.seeds import compare_over_seeds, over_seeds
from luthier.evaluation.statistics import compare, holm, resample_counts

EXAMPLES = 150
COUNTS = np.concatenate(list(resample_counts(EXAMPLES, 300)))


def answers(draw: np.random.Generator, hard: np.ndarray, seeds: int, spread: float, mean: float = 1.0) -> np.ndarray:  # type: ignore[type-arg]
    """Right or wrong, shape (seeds, examples): examples differ, seeds differ by ``spread``, and a seed has its own weak examples."""
    logits = mean + hard + draw.normal(0, spread, (seeds, 1)) + draw.normal(0, 0.5, (seeds, len(hard)))
    return (draw.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)


def replicated(right: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return (COUNTS @ right.T / EXAMPLES).T


def test_the_parts_of_the_variance_are_those_of_a_crossed_analysis() -> None:
    """Means of right answers have the textbook's answer: a two-way crossed layout of seeds and examples."""
    draw = np.random.default_rng(0)
    right = answers(draw, draw.normal(0, 1.5, EXAMPLES), 4, 1.0)
    counts = np.concatenate(list(resample_counts(EXAMPLES, 20_000)))
    ours = over_seeds(right.mean(axis=1), (counts @ right.T / EXAMPLES).T)
    seeds, examples = right.shape
    rows = examples * ((right.mean(axis=1) - right.mean()) ** 2).sum() / (seeds - 1)
    residual = right - right.mean(axis=1, keepdims=True) - right.mean(axis=0) + right.mean()
    inner = (residual**2).sum() / ((seeds - 1) * (examples - 1))
    assert ours.value == pytest.approx(right.mean())
    assert ours.seed_std**2 == pytest.approx((rows - inner) / examples, rel=0.03)
    assert ours.example_std == pytest.approx(np.sqrt(right.var(axis=1).mean() / examples), rel=0.02)
    shared = (np.cov(right, ddof=0).sum() - right.var(axis=1).sum()) / (seeds * (seeds - 1)) / examples
    reach = np.sqrt(1.96**2 * shared + stats.t.ppf(0.975, 3) ** 2 * right.mean(axis=1).var(ddof=1) / seeds)
    assert (ours.value - ours.low, ours.high - ours.value) == pytest.approx((reach, reach), rel=0.02)


def test_one_seed_is_the_interval_of_the_examples() -> None:
    draw = np.random.default_rng(0)
    right = answers(draw, draw.normal(0, 1.5, EXAMPLES), 1, 0.5)
    found = over_seeds(right.mean(axis=1), replicated(right))
    error = right.std() / np.sqrt(EXAMPLES)
    assert (found.low, found.high) == pytest.approx(
        (right.mean() - 1.96 * error, right.mean() + 1.96 * error), abs=0.01
    )
    assert found.seed_std == 0.0


def test_more_seeds_that_agree_say_nothing_of_other_examples() -> None:
    draw = np.random.default_rng(0)
    one = answers(draw, draw.normal(0, 1.5, EXAMPLES), 1, 0.5)
    same = np.repeat(one, 6, axis=0)
    alone, many = over_seeds(one.mean(axis=1), replicated(one)), over_seeds(same.mean(axis=1), replicated(same))
    assert (many.low, many.high) == pytest.approx((alone.low, alone.high))


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_coverage_and_false_finds(seeds: int, spread: float) -> None:
    """The true figure is that of other seeds and other examples."""
    draw = np.random.default_rng(seeds)
    noise = np.random.default_rng(5).normal(0, np.sqrt(1.5**2 + spread**2 + 0.5**2), 200_000)
    truth = (1 / (1 + np.exp(-(1.0 + noise)))).mean()
    held = found = 0
    for _ in range(400):
        hard = draw.normal(0, 1.5, EXAMPLES)
        one, other = (answers(draw, hard, seeds, spread) for _ in range(2))
        interval = over_seeds(one.mean(axis=1), replicated(one))
        held += interval.low <= truth <= interval.high
        pair = compare_over_seeds([one.mean(axis=1), other.mean(axis=1)], [replicated(one), replicated(other)])[0]
        found += pair.p < 0.05
    assert held / 400 >= 0.93
    assert found / 400 <= 0.06


def test_one_lucky_seed_is_taken_for_a_difference_and_five_are_not() -> None:
    draw = np.random.default_rng(1)
    wrong = {1: 0, 5: 0}
    for _ in range(200):
        hard = draw.normal(0, 1.5, EXAMPLES)
        pair = [answers(draw, hard, 5, 0.6) for _ in range(2)]
        for seeds in wrong:
            few = [right[:seeds] for right in pair]
            wrong[seeds] += compare_over_seeds([r.mean(axis=1) for r in few], [replicated(r) for r in few])[0].p < 0.05
    assert wrong[1] / 200 > 0.2 > 0.08 > wrong[5] / 200


def test_one_seed_each_is_the_paired_comparison() -> None:
    draw = np.random.default_rng(2)
    hard = draw.normal(0, 1.5, EXAMPLES)
    pair = [answers(draw, hard, 1, 0.0, mean) for mean in (1.0, 1.8)]
    counts = np.concatenate(list(resample_counts(EXAMPLES, 20_000)))
    drawn = np.stack([counts @ r[0] / EXAMPLES for r in pair])
    ours = compare_over_seeds([r.mean(axis=1) for r in pair], [row[None] for row in drawn])[0]
    values = [float(r.mean()) for r in pair]
    paired = compare([lambda c: c[:, 0]] * 2, EXAMPLES, values=values, replicates=drawn)[0]
    assert ours.value == pytest.approx(paired.value)
    assert (ours.low, ours.high) == pytest.approx((paired.low, paired.high), abs=0.004)
    assert ours.p == pytest.approx(stats.ttest_rel(pair[0][0], pair[1][0]).pvalue, abs=0.01)


def test_all_pairs_are_adjusted_and_equal_entrants_have_p_one() -> None:
    draw = np.random.default_rng(2)
    hard = draw.normal(0, 1.5, EXAMPLES)
    many = [answers(draw, hard, seeds, 0.2, mean) for seeds, mean in ((3, 1.0), (1, 1.0), (2, 3.0))]
    found = compare_over_seeds([r.mean(axis=1) for r in many], [replicated(r) for r in many])
    assert [(d.first, d.second) for d in found] == [(0, 1), (0, 2), (1, 2)]
    assert [d.p_adjusted for d in found] == pytest.approx(holm([d.p for d in found]))
    same = compare_over_seeds([[0.5], [0.5]], [np.full((1, 10), 0.5)] * 2)[0]
    assert (same.p, same.low, same.high) == (1.0, 0.0, 0.0)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(seeds, resamples\) for 2 seeds; got \(3, 10\)"):
        over_seeds([0.5, 0.6], np.zeros((3, 10)))
    with pytest.raises(InputError, match="same resamples"):
        compare_over_seeds([[0.5], [0.6]], [np.zeros((1, 10)), np.zeros((1, 20))])
