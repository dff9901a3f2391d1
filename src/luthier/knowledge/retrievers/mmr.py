"""Relevant and different: maximal marginal relevance (Carbonell and Goldstein 1998)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._query import MOST, Query, Search, SearchTools


class Config(EntryConfig):
    """Each next chunk has the highest ``relevance`` x similarity to the question - (1 - ``relevance``) x the highest similarity to one chosen."""

    relevance: float = Field(default=0.7, ge=0.0, le=1.0)
    candidates: int = Field(default=30, ge=1, le=MOST)


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """A choice among what the inner search finds, in the order of choosing."""
    found = inner(replace(query, k=max(config.candidates, query.k)))
    if len(found) < 2:
        return found[: query.k]
    vectors = tools.embed([hit.chunk.embedded for hit in found])
    alike = vectors @ tools.vector_of(query)
    near = np.zeros(len(found), np.float32)  # the highest similarity to one that was chosen
    left = np.ones(len(found), bool)
    chosen: list[int] = []
    while len(chosen) < min(query.k, len(found)):
        worth = np.where(left, config.relevance * alike - (1 - config.relevance) * near, -np.inf)
        best = int(np.argmax(worth))
        left[best] = False
        like = vectors @ vectors[best]
        near = like if not chosen else np.maximum(near, like)
        chosen.append(best)
    return [replace(found[at], scores={**found[at].scores, "similarity": float(alike[at])}) for at in chosen]
