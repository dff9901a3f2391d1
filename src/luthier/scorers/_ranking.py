"""Measures of a ranked list, by the equations of their papers. Pure functions of what each place of the list found.

What is to be found are *passages* with grades (1 for plain relevance). A place of the list can find none, one or several of them; what an
earlier place has found already is no further gain, so that overlapping chunks of one passage do not count twice.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ranked:
    """A list as it was judged: ``found`` says of each place, best first, which passages are there (places in ``grades``)."""

    found: tuple[frozenset[int], ...]
    grades: tuple[float, ...]

    @staticmethod
    def of(found: Sequence[Collection[int]], grades: Sequence[float]) -> Ranked:
        """From any collections of places."""
        return Ranked(tuple(frozenset(each) for each in found), tuple(float(grade) for grade in grades))

    @property
    def first(self) -> int | None:
        """The rank, from 1, of the first place that found something."""
        return next((rank for rank, each in enumerate(self.found, 1) if each), None)

    def new(self) -> list[frozenset[int]]:
        """What each place found that none before it had."""
        seen: set[int] = set()
        out = []
        for each in self.found:
            out.append(frozenset(each - seen))
            seen |= each
        return out


def recall(ranked: Ranked, k: int) -> float:
    """Passages found in the first ``k`` places over all passages."""
    return len(frozenset().union(*ranked.found[:k])) / len(ranked.grades)


def precision(ranked: Ranked, k: int) -> float:
    """Places among the first ``k`` that found something, over ``k`` (a list that is shorter is not let off)."""
    return sum(bool(each) for each in ranked.found[:k]) / k


def hit_rate(ranked: Ranked, k: int) -> float:
    """1 when one of the first ``k`` places found something, else 0."""
    return float(any(ranked.found[:k]))


def reciprocal_rank(ranked: Ranked, k: int) -> float:
    """1 over the rank of the first find within ``k``, else 0 (Voorhees, 1999); its mean over questions is the MRR."""
    return 1.0 / ranked.first if ranked.first is not None and ranked.first <= k else 0.0


def ndcg(ranked: Ranked, k: int) -> float:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen, 2002, with the usual discount log2(rank + 1) at every rank and the
    grade itself as gain), at most 1."""
    gains = [sum(ranked.grades[i] for i in each) for each in ranked.new()[:k]]
    ideal = _discounted(sorted(ranked.grades, reverse=True)[:k])
    return min(1.0, _discounted(gains) / ideal) if ideal > 0 else 0.0


def average_precision(ranked: Ranked, k: int) -> float:
    """The mean over all passages of the precision at the rank where each is found, 0 for those beyond ``k``; its mean over questions is
    the MAP (Buckley and Voorhees, 2000)."""
    total, so_far = 0.0, 0
    for rank, each in enumerate(ranked.new()[:k], 1):
        so_far += len(each)
        total += len(each) * min(1.0, so_far / rank)
    return total / len(ranked.grades)


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
