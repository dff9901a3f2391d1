"""Measures of ranked lists against scikit-learn and cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from luthier.scorers import _ranking
from luthier.scorers._ranking import Ranked


def plain(relevant: list[bool], missing: int = 0) -> Ranked:
    """Each relevant place finds a passage of its own; ``missing`` are found by none."""
    numbers = iter(range(len(relevant)))
    found = [{next(numbers)} if each else set() for each in relevant]
    return Ranked.of(found, [1.0] * (sum(relevant) + missing))


def test_ndcg_and_map_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(5)
    for _ in range(40):
        length = int(draw.integers(2, 12))
        grades = draw.integers(0, 4, length)
        if not grades.any():
            continue
        order = np.arange(length, 0, -1, dtype=float)  # the list as it is
        places = {place: number for number, place in enumerate(np.flatnonzero(grades))}
        ranked = Ranked.of([{places[i]} if i in places else set() for i in range(length)], grades[grades > 0])
        for k in (1, 3, length):
            assert _ranking.ndcg(ranked, k) == pytest.approx(ndcg_score(grades[None], order[None], k=k))
        expected = average_precision_score(grades > 0, order)
        assert _ranking.average_precision(ranked, length) == pytest.approx(expected)


def test_a_case_by_hand() -> None:
    ranked = plain([False, True, False, True, False], missing=1)  # two of three passages, at ranks 2 and 4
    assert _ranking.recall(ranked, 1) == 0.0
    assert _ranking.recall(ranked, 2) == pytest.approx(1 / 3)
    assert _ranking.recall(ranked, 5) == pytest.approx(2 / 3)
    assert _ranking.precision(ranked, 2) == 0.5
    assert _ranking.precision(ranked, 10) == pytest.approx(0.2)
    assert [_ranking.hit_rate(ranked, k) for k in (1, 2)] == [0.0, 1.0]
    assert _ranking.reciprocal_rank(ranked, 5) == 0.5
    assert _ranking.reciprocal_rank(ranked, 1) == 0.0
    assert _ranking.average_precision(ranked, 5) == pytest.approx((1 / 2 + 2 / 4) / 3)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert _ranking.ndcg(ranked, 5) == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / ideal)


def test_overlapping_chunks_of_one_passage_do_not_count_twice() -> None:
    twice, once = Ranked.of([{0}, {0}, {1}], [1.0, 1.0]), Ranked.of([{0}, set(), {1}], [1.0, 1.0])
    for measure in (_ranking.recall, _ranking.ndcg, _ranking.average_precision):
        assert measure(twice, 3) == measure(once, 3)
    assert _ranking.precision(twice, 3) == 1.0  # each of them is of use all the same


def test_a_chunk_that_holds_several_passages_is_never_above_one() -> None:
    both = Ranked.of([{0, 1, 2}], [1.0, 1.0, 1.0])
    for measure in (_ranking.recall, _ranking.ndcg, _ranking.average_precision):
        assert measure(both, 1) == 1.0


def test_nothing_found() -> None:
    for ranked in (Ranked.of([], [1.0]), plain([False, False], missing=2)):
        for measure in (
            _ranking.recall,
            _ranking.precision,
            _ranking.hit_rate,
            _ranking.reciprocal_rank,
            _ranking.ndcg,
        ):
            assert measure(ranked, 3) == 0.0
        assert _ranking.average_precision(ranked, 3) == 0.0
