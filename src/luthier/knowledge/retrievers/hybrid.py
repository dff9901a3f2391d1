"""Meaning and words together, by the ranks that both give: the default."""

from __future__ import annotations

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._query import Query, Search, SearchTools, fused

FIRST = True


class Config(EntryConfig):
    """``dense`` and ``keyword`` are weights of the two lists, each of ``candidates`` chunks; ``constant`` is that of the fusion."""

    dense: float = Field(default=1.0, ge=0.0)
    keyword: float = Field(default=1.0, ge=0.0)
    candidates: int = Field(default=50, ge=1)
    constant: int = Field(default=60, ge=0)


def search(query: Query, config: Config, tools: SearchTools, inner: Search | None) -> list[Hit]:
    """Reciprocal rank fusion of both searches."""
    most = max(config.candidates, query.k)
    vector = tools.vector_of(query)
    lists = [tools.index.dense(vector, most, query.where), tools.index.keyword(query.text, most, query.where)]
    return fused(lists, [config.dense, config.keyword], query.k, constant=config.constant)
