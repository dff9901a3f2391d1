"""How many rows of each source an epoch has: the papers' formulas, and which rows they are."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.shares import Mixture

SIZES = (100, 20, 5)


def mixture(sampling: str, **options: object) -> Mixture:
    return Mixture(("a", "b", "c"), sampling, **options)  # type: ignore[arg-type]


def share_of(counted: list[float]) -> list[float]:
    return [each / sum(counted) for each in counted]


@pytest.mark.parametrize(
    ("made", "counted"),
    [
        (mixture("proportional"), [100, 20, 5]),
        (mixture("proportional", cap=30), [30, 20, 5]),
        (mixture("temperature", temperature=2.0), [10, math.sqrt(20), math.sqrt(5)]),
        (mixture("temperature", temperature=4.0, cap=50), [50**0.25, 20**0.25, 5**0.25]),
        (mixture("weights", weights=(1.0, 2.0, 5.0)), [1, 2, 5]),
        (mixture("equal"), [1, 1, 1]),
    ],
)
def test_shares_are_those_of_the_papers(made: Mixture, counted: list[float]) -> None:
    assert made.shares(SIZES) == pytest.approx(share_of(counted), abs=1e-12)


def test_annealing_ends_near_equal() -> None:
    made = mixture("annealed", epochs=5)
    for epoch, power in enumerate((1.0, 0.8, 0.6, 0.4, 0.2)):
        assert made.shares(SIZES, epoch) == pytest.approx(share_of([n**power for n in SIZES]), abs=1e-12)
    assert mixture("annealed").shares(SIZES) == pytest.approx(share_of([100, 20, 5]))


def test_dynamic_is_weight_averaging_of_relative_losses() -> None:
    made = mixture("dynamic", temperature=2.0)
    losses = [{"a": 2.0, "b": 1.0, "c": 4.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 0.5, "c": 2.0}]
    third = [1 / 3] * 3
    assert made.shares(SIZES, 0, losses) == pytest.approx(third)
    assert made.shares(SIZES, 1, losses) == pytest.approx(third), "one loss says nothing about its fall"
    assert made.shares(SIZES, 2, losses) == pytest.approx(share_of([math.exp(r / 2) for r in (0.5, 1.0, 0.25)]))
    assert made.shares(SIZES, 3, losses) == pytest.approx(share_of([math.exp(r / 2) for r in (1.0, 0.5, 2.0)]))


def test_a_proportional_epoch_is_every_row_once() -> None:
    drawn = mixture("proportional").draw(SIZES, seed=0, epoch=0)
    assert sorted(drawn) == list(range(125))
    assert drawn != sorted(drawn)


def test_a_capped_epoch_goes_on_where_the_last_one_stopped() -> None:
    made = mixture("proportional", cap=30)
    assert made.counts(SIZES) == (30, 20, 5)
    large = [row for epoch in range(3) for row in made.draw(SIZES, seed=1, epoch=epoch) if row < 100]
    assert len(set(large)) == 90, "three epochs of 30 rows show 90 different ones"


def test_a_small_source_is_repeated_evenly() -> None:
    made = mixture("equal", epoch_rows=120)
    seen = Counter(row for epoch in range(3) for row in made.draw(SIZES, seed=0, epoch=epoch))
    assert [sum(seen[row] for row in rows) for rows in (range(100), range(100, 120), range(120, 125))] == [120] * 3
    assert {seen[row] for row in range(100, 120)} == {6}
    assert {seen[row] for row in range(120, 125)} == {24}
    assert made.draw(SIZES, seed=0, epoch=1) == made.draw(SIZES, seed=0, epoch=1)
    assert made.draw(SIZES, seed=0, epoch=1) != made.draw(SIZES, seed=1, epoch=1)


def test_a_tiny_source_is_never_lost() -> None:
    made = Mixture(("huge", "tiny"), "weights", (1000.0, 1.0))
    assert made.counts((100, 1)) == (100, 1)
    assert made.draw((100, 1), seed=0, epoch=7).count(100) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.sampled_from(["proportional", "temperature", "equal", "annealed"]),
    st.integers(1, 200),
    st.integers(0, 4),
)
def test_no_row_comes_again_before_all_of_its_source_came(
    sizes: list[int], sampling: str, rows: int, epoch: int
) -> None:
    made = Mixture(tuple(f"s{n}" for n in range(len(sizes))), sampling, epoch_rows=rows, epochs=5)  # type: ignore[arg-type]
    assert sum(made.counts(sizes, epoch)) == rows
    seen = Counter(row for past in range(epoch + 1) for row in made.draw(sizes, seed=3, epoch=past))
    first = 0
    for size in sizes:
        counts = [seen[row] for row in range(first, first + size)]
        assert max(counts) - min(counts) <= 1
        first += size
    assert sum(seen.values()) == rows * (epoch + 1)
