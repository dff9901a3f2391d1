"""A search is a chain of steps, each around the next; the last one asks the index (the catalogue ``knowledge/retrievers``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from luthier.core import catalog
from luthier.core.document import Hit
from luthier.core.errors import InputError
from luthier.knowledge.index import Filter
from luthier.knowledge.retrievers._query import Query, Search, SearchTools
from luthier.store.knowledge import folder_of

if TYPE_CHECKING:
    from luthier.core.engine import Engine
    from luthier.knowledge.base import KnowledgeBase

DEFAULT = ({"name": "hybrid"},)
MOST = 1000


def search(
    base: KnowledgeBase,
    question: str,
    k: int = 5,
    where: Filter | None = None,
    *,
    retrieval: Sequence[Mapping[str, Any]] | None = None,
    history: Sequence[str] = (),
    reranker: Engine | None = None,
) -> list[Hit]:
    """The ``k`` best chunks. Raises InputError for an empty question, a wrong ``k``, and steps that need a model which is not there."""
    if not question.strip():
        raise InputError("question must not be empty")
    if not 1 <= k <= MOST:
        raise InputError(f"k must be 1 to {MOST}; got {k}")
    tools = SearchTools(
        base.current, base.embedder.embed, datetime.now(UTC), base.ask, reranker, base.embedder.embed_queries,
        folder=folder_of(base.store, base.name), embedder=base.embedder.digest,
    )  # fmt: skip
    steps = retrieval if retrieval is not None else base.record.retrieval
    query = Query(question, k, where, tuple(history))
    return build(steps or DEFAULT, tools)(query)[:k]


def build(steps: Sequence[Mapping[str, Any]], tools: SearchTools) -> Search:
    """The chain of ``steps``, the first one outermost; without one at the end that asks the index, ``hybrid`` is it."""
    chain: Search | None = None
    for step in reversed(_with_last(steps)):
        options = {key: value for key, value in step.items() if key != "name"}
        entry = catalog.load("retrievers", str(step["name"]))
        chain = partial(_step, entry, entry.configure(options), tools, chain)
    assert chain is not None
    return chain


def check_retrieval(steps: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError or NotFoundError unless ``steps`` can be a search."""
    for place, step in enumerate(_with_last(steps)):
        if "name" not in step:
            raise InputError(
                f"retrieval: step {place + 1} needs a name, one of {', '.join(catalog.names('retrievers'))}"
            )
        entry = catalog.load("retrievers", str(step["name"]))
        entry.configure({key: value for key, value in step.items() if key != "name"})
        if entry.optional("FIRST") and place + 1 < len(_with_last(steps)):
            raise InputError(f"retrieval: {step['name']} asks the index itself, so it must be the last step")


def _with_last(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    listed = list(steps)
    if listed and "name" in listed[-1] and catalog.load("retrievers", str(listed[-1]["name"])).optional("FIRST"):
        return listed
    return [*listed, *DEFAULT]


def _step(entry: catalog.Entry, config: Any, tools: SearchTools, inner: Search | None, query: Query) -> list[Hit]:
    found: list[Hit] = entry(query, config, tools, inner)
    return found
