"""The same words: BM25."""

from __future__ import annotations

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._query import Query, Search, SearchTools

FIRST = True


class Config(EntryConfig):
    """Nothing to choose."""


def search(query: Query, config: Config, tools: SearchTools, inner: Search | None) -> list[Hit]:
    """The chunks with the rarest of the question's words."""
    return tools.index.keyword(query.text, query.k, query.where)
