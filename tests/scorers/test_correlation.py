"""Pearson and Spearman against scipy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from luthier.core import catalog
from luthier.scorers._score import Answer, Figure, Target

REFERENCE = {"pearson": pearsonr, "spearman": spearmanr}


def figure(name: str, answers: Sequence[str], targets: Sequence[str]) -> Figure:
    entry = catalog.load("scorers", name)
    given, wanted = [Answer(a) for a in answers], [Target(t) for t in targets]
    return Figure(entry, entry.configure(), given, wanted, [None] * len(given))


def drawn(seed: int, offset: float = 0.0) -> tuple[list[float], list[float]]:
    """Grades with many ties."""
    draw = np.random.default_rng(seed)
    wanted = draw.integers(0, 11, 80) / 2 + offset
    given = np.round(wanted + draw.normal(0, 1.5, 80), 0)
    return given.tolist(), wanted.tolist()


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("offset", [0.0, 1e7])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_scipys(name: str, seed: int, offset: float) -> None:
    given, wanted = drawn(seed, offset)
    found = figure(name, [f"I say {x}." for x in given], [str(x) for x in wanted])
    assert found.value == pytest.approx(REFERENCE[name](given, wanted).statistic, abs=1e-8)


@pytest.mark.parametrize("name", REFERENCE)
def test_each_resample_is_scipys(name: str) -> None:
    given, wanted = drawn(4)
    found = figure(name, [str(x) for x in given], [str(x) for x in wanted])
    draw = np.random.default_rng(5)
    rows = draw.integers(0, len(given), size=(20, len(given)))
    counts = np.stack([np.bincount(row, minlength=len(given)) for row in rows]).astype(np.float32)
    expected = [REFERENCE[name](np.array(given)[row], np.array(wanted)[row]).statistic for row in rows]
    assert found(counts) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("name", REFERENCE)
def test_examples_without_a_number_are_left_out(name: str) -> None:
    given, wanted = drawn(6)
    with_gaps = figure(name, [*map(str, given), "no idea", "3"], [*map(str, wanted), "2", "no number"])
    assert with_gaps.value == pytest.approx(REFERENCE[name](given, wanted).statistic, abs=1e-8)
    entry = catalog.load("scorers", name)
    assert entry(Answer("no idea"), Target("2"), entry.configure()).value is None
    assert entry(Answer("2"), Target("x"), entry.configure()).detail["reason"] == "no number in the target"
    assert entry(Answer("4"), Target("2"), entry.configure()).value == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", REFERENCE)
def test_too_little_to_correlate(name: str) -> None:
    assert np.isnan(figure(name, ["1"], ["2"]).value)
    assert np.isnan(figure(name, ["x", "y"], ["1", "2"]).value)
    assert figure(name, ["3", "3", "3"], ["1", "2", "4"]).value == 0.0
    assert figure(name, ["1", "2"], ["5", "4"]).value == pytest.approx(-1.0)


def test_only_the_order_matters_to_spearman() -> None:
    assert figure("spearman", ["1", "2", "1000"], ["1", "2", "3"]).value == pytest.approx(1.0)
    assert figure("pearson", ["1", "2", "1000"], ["1", "2", "3"]).value < 0.9
