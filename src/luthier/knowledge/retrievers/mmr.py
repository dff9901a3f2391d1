"""Relevant and different: maximal marginal relevance (Carbonell and Goldstein 1998)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._query import Query, Search, SearchTools


class Config(EntryConfig):
    """Each next chunk has the highest ``relevance`` x similarity to the question - (1 - ``relevance``) x similarity to those chosen."""

    relevance: float = Field(default=0.7, ge=0.0, le=1.0)
    candidates: int = Field(default=30, ge=1)


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """A choice among what the inner search finds."""
    found = inner(replace(query, k=max(config.candidates, query.k)))
    if len(found) < 2:
        return found[: query.k]
    question = tools.vector_of(query)
    vectors = tools.embed([hit.chunk.embedded for hit in found])
    alike, among = vectors @ question, vectors @ vectors.T
    chosen: list[int] = []
    while len(chosen) < min(query.k, len(found)):
        left = [at for at in range(len(found)) if at not in chosen]
        near = among[np.ix_(left, chosen)].max(1) if chosen else np.zeros(len(left))
        worth = config.relevance * alike[left] - (1 - config.relevance) * near
        chosen.append(left[int(np.argmax(worth))])
    return [replace(found[at], scores={**found[at].scores, "similarity": float(alike[at])}) for at in chosen]
