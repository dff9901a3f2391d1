from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from luthier.core.errors import EvaluationError, InputError
from luthier.evaluation.power import (
    Design,
    examples_for_margin,
    from_differences,
    from_error,
    margin_of,
    paired_difference,
    paired_examples,
    unpaired_difference,
    unpaired_examples,
)


@pytest.mark.parametrize(("margin", "rule"), [(0.3, 10), (0.1, 100), (0.03, 1_000), (0.01, 10_000)])
def test_the_rule_of_thumb(margin: float, rule: int) -> None:
    """One over the margin squared, as textbooks print it."""
    assert examples_for_margin(margin) == pytest.approx(rule, rel=0.1)
    assert margin_of(rule) == pytest.approx(margin, rel=0.15)


def test_the_margin_is_that_of_statsmodels() -> None:
    from statsmodels.stats.proportion import proportion_confint, samplesize_confint_proportion

    assert examples_for_margin(0.04, accuracy=0.8) == math.ceil(samplesize_confint_proportion(0.8, 0.04))
    low, high = proportion_confint(80, 100, method="wilson")
    assert margin_of(100, accuracy=0.8) == pytest.approx((high - low) / 2)


def simulated_power(draw: np.random.Generator, examples: int, difference: float, discordance: float) -> float:
    """Share of McNemar tests (score form) that find the difference."""
    shares = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    only = draw.multinomial(examples, shares, size=20_000)
    z = (only[:, 0] - only[:, 1]) / np.sqrt(np.maximum(only[:, 0] + only[:, 1], 1))
    return float((z > 1.959964).mean())


@pytest.mark.parametrize(
    ("difference", "discordance"), [(0.03, 0.1), (0.05, 0.1), (0.05, 0.3), (0.1, 0.25), (0.1, 0.15)]
)
def test_as_many_paired_examples_find_it_in_eight_of_ten(difference: float, discordance: float) -> None:
    examples = paired_examples(difference, discordance)
    found = simulated_power(np.random.default_rng(0), examples, difference, discordance)
    assert 0.775 <= found <= 0.85  # a little too many where nearly all discordant examples point one way
    assert paired_difference(examples, discordance) == pytest.approx(difference, rel=0.01)


@pytest.mark.parametrize(("difference", "accuracy"), [(0.03, 0.9), (0.05, 0.7), (0.1, 0.6), (0.2, 0.5)])
def test_unpaired_examples_are_those_of_statsmodels_and_of_simulation(difference: float, accuracy: float) -> None:
    from statsmodels.stats.proportion import power_proportions_2indep

    examples = unpaired_examples(difference, accuracy)
    theirs = power_proportions_2indep(-difference, accuracy, examples, alternative="two-sided")
    assert theirs.power == pytest.approx(0.8, abs=0.01)
    draw = np.random.default_rng(0)
    one, other = (draw.binomial(examples, share, 20_000) for share in (accuracy, accuracy - difference))
    pooled = (one + other) / (2 * examples)
    z = (one - other) / examples / np.sqrt(2 * pooled * (1 - pooled) / examples)
    assert float((z > 1.959964).mean()) == pytest.approx(0.8, abs=0.025)
    assert unpaired_difference(examples, accuracy) == pytest.approx(difference, rel=0.01)


def test_the_same_examples_need_fewer_than_different_ones() -> None:
    assert paired_examples(0.05, 0.1) < unpaired_examples(0.05, 0.9)


def test_more_power_a_stricter_level_and_more_pairs_need_more() -> None:
    plain = paired_examples(0.05, 0.2)
    assert paired_examples(0.05, 0.2, Design(power=0.9)) > plain
    assert paired_examples(0.05, 0.2, Design(level=0.01)) > plain
    assert paired_examples(0.05, 0.2, Design(comparisons=10)) == paired_examples(0.05, 0.2, Design(level=0.005))
    assert Design().reach == pytest.approx(2.8016, abs=1e-3)


def test_too_few_examples_show_nothing() -> None:
    assert math.isnan(paired_difference(20, 0.05))
    assert math.isnan(unpaired_difference(3, 0.5))
    assert paired_difference(160, 0.05) <= 0.05


def test_from_records_of_right_and_wrong() -> None:
    draw = np.random.default_rng(0)
    differences = draw.choice([1.0, -1.0, 0.0], size=400, p=[0.14, 0.06, 0.8])
    found = from_differences(differences.tolist())
    assert found.discordance == pytest.approx(float(np.abs(differences).mean()))
    assert found.error == pytest.approx(stats.sem(differences))
    assert found.detectable == pytest.approx(paired_difference(400, found.discordance or 0), rel=0.03)
    assert found.examples_needed == pytest.approx(paired_examples(found.difference, found.discordance or 0), rel=0.03)


def test_from_any_figure() -> None:
    found = from_error(0.02, 0.01, 280)
    assert found.detectable == pytest.approx(0.028, abs=1e-3)
    assert found.examples_needed == pytest.approx(280 * (2.8016 / 2) ** 2, abs=1)
    assert from_error(0.0, 0.01, 280).examples_needed is None
    assert from_differences([0.5, 0.1, -0.2]).discordance is None
    assert set(found.as_dict()) >= {"examples", "detectable", "discordance"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_examples(0.2, 0.1), r"discordance must be between the difference \(0.2\) and 1; got 0.1"),
        (lambda: paired_examples(0.0, 0.1), "difference must be above 0"),
        (lambda: unpaired_examples(0.5, 0.4), r"accuracy must be above the difference \(0.5\)"),
        (lambda: paired_difference(0, 0.1), "examples must be at least 1; got 0"),
        (lambda: Design(power=1.0), "power must be above 0 and below 1; got 1"),
        (lambda: Design(comparisons=0), "comparisons must be at least 1"),
        (lambda: examples_for_margin(2.0), "margin must be"),
    ],
)
def test_impossible_wishes_are_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call()


def test_one_example_says_nothing_of_spread() -> None:
    with pytest.raises(EvaluationError, match="got 1"):
        from_differences([1.0])
