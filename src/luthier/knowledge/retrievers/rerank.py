"""A model that reads question and chunk together puts the best first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.core.errors import InputError
from luthier.knowledge.retrievers._query import Query, Search, SearchTools


class Config(EntryConfig):
    """``candidates`` chunks are reranked. ``weight``: share of the reranker's score, the rest is the one before (both scaled to 0-1 of the list)."""

    candidates: int = Field(default=30, ge=1)
    weight: float = Field(default=1.0, gt=0.0, le=1.0)


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """The best of what the inner search finds. Raises InputError without a reranker."""
    if tools.reranker is None:
        raise InputError("retrieval step rerank needs a reranking model; none was given", hint="--reranker MODEL")
    found = inner(replace(query, k=max(config.candidates, query.k)))
    if not found:
        return []
    model: Any = tools.reranker
    scores = [float(each) for each in model.rerank(query.text, [hit.chunk.text for hit in found])]
    blended = [
        config.weight * own + (1 - config.weight) * before
        for own, before in zip(_scaled(scores), _scaled([hit.score for hit in found]), strict=True)
    ]
    order = sorted(range(len(found)), key=lambda at: -blended[at])[: query.k]
    return [replace(found[at], score=scores[at], scores={**found[at].scores, "rerank": scores[at]}) for at in order]


def _scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]
