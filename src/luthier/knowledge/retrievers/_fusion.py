"""Several lists of hits into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from luthier.core.document import Hit

RRF_CONSTANT = 60


def by_rank(
    lists: Sequence[Sequence[Hit]], weights: Sequence[float], k: int, *, constant: int = RRF_CONSTANT
) -> list[Hit]:
    """Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): a chunk's score is the sum of weight / (constant + rank)."""
    scores: dict[str, float] = {}
    for hits, weight in zip(lists, weights, strict=True):
        for rank, hit in enumerate(hits, 1):
            scores[hit.chunk.id] = scores.get(hit.chunk.id, 0.0) + weight / (constant + rank)
    return _best(scores, lists, k)


def by_score(near: Sequence[Hit], words: Sequence[Hit], dense: float, keyword: float, k: int) -> list[Hit]:
    """(dense x similarity + keyword x BM25 / its highest) / (dense + keyword).

    A convex combination of scores (Bruch, Gai and Ingber 2023, https://arxiv.org/abs/2210.11934) that leaves similarities as they are: when they
    are all alike they add the same to every chunk and say nothing. A chunk that only the words found counts as similar as the last of
    ``near``, which is the most that it can be; one that only the vectors found has none of the words.
    """
    likeness = {hit.chunk.id: hit.score for hit in near}
    highest = max((hit.score for hit in words), default=0.0)
    matched = {hit.chunk.id: hit.score / highest if highest > 0 else 0.0 for hit in words}
    least = min(likeness.values(), default=0.0)
    total = dense + keyword
    scores = {
        each: (dense * likeness.get(each, least) + keyword * matched.get(each, 0.0)) / total
        for each in {**likeness, **matched}
    }
    return _best(scores, [near, words], k)


def _best(scores: Mapping[str, float], lists: Sequence[Sequence[Hit]], k: int) -> list[Hit]:
    """The ``k`` highest, each with what all lists say of it."""
    first: dict[str, Hit] = {}
    for hit in (hit for hits in lists for hit in hits):
        known = first.get(hit.chunk.id)
        first[hit.chunk.id] = hit if known is None else replace(known, scores={**hit.scores, **known.scores})
    best = sorted(scores, key=lambda each: -scores[each])[:k]
    return [replace(first[each], score=scores[each]) for each in best]
