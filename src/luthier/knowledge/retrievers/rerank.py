"""A model that reads question and chunk together puts the best first."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._query import MOST, Query, Search, SearchTools


class Config(EntryConfig):
    """``candidates`` chunks are reranked. ``weight``: share of the reranker's score, the rest is the one before (both scaled to 0-1 of the list)."""

    candidates: int = Field(default=30, ge=1, le=MOST)
    weight: float = Field(default=1.0, gt=0.0, le=1.0)


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """The best of what the inner search finds, in whose order they stay when the model fails. Raises InputError without a reranker."""
    tools.reader()  # a missing one is said before anything is searched
    found = inner(replace(query, k=max(config.candidates, query.k)))
    scores = tools.rerank(query.text, [hit.chunk.text for hit in found]) if found else None
    if scores is None:
        return found[: query.k]
    worth = scores if config.weight == 1 else _blended(scores, [hit.score for hit in found], config.weight)
    order = sorted(range(len(found)), key=lambda at: -worth[at])[: query.k]
    return [replace(found[at], score=worth[at], scores={**found[at].scores, "rerank": scores[at]}) for at in order]


def _blended(scores: list[float], before: list[float], weight: float) -> list[float]:
    return [weight * a + (1 - weight) * b for a, b in zip(_scaled(scores), _scaled(before), strict=True)]


def _scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]
