"""Nearest in meaning: the question's vector against the chunks'."""

from __future__ import annotations

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._query import Query, Search, SearchTools

FIRST = True


class Config(EntryConfig):
    """``exact`` compares with every vector, also where there is an approximate index."""

    exact: bool = False


def search(query: Query, config: Config, tools: SearchTools, inner: Search | None) -> list[Hit]:
    """The nearest chunks."""
    return tools.index.dense(tools.vector_of(query), query.k, query.where, exact=config.exact)
