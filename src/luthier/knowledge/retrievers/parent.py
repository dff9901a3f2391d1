"""Show the larger chunk around the one that was found."""

from __future__ import annotations

from dataclasses import replace

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._query import MOST, Query, Search, SearchTools, unique


class Config(EntryConfig):
    """Nothing to choose."""


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """Each parent once, with the score of its best child; chunks without a parent stay."""
    wanted = min(2 * query.k, MOST)
    while True:
        found = inner(replace(query, k=wanted))
        parents = {hit.chunk.id: hit for hit in tools.index.get(sorted({hit.chunk.parent for hit in found} - {""}))}
        shown = []
        for hit in found:
            whole = parents.get(hit.chunk.parent)
            shown.append(hit if whole is None else replace(whole, score=hit.score, scores=hit.scores))
        out = unique(shown)
        if len(out) >= query.k or len(found) < wanted or wanted >= min(8 * query.k, MOST):
            return out[: query.k]
        wanted = min(2 * wanted, MOST)  # several children of one parent took each other's places
