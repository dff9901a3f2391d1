"""A search is a chain of steps, each around the next; the last one asks the index (the catalogue ``knowledge/retrievers``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from luthier.core import catalog
from luthier.core.document import Hit
from luthier.core.errors import InputError
from luthier.knowledge.index import Filter, tag
from luthier.knowledge.retrievers._query import MOST, Note, Query, Search, SearchTools
from luthier.store.knowledge import folder_of

if TYPE_CHECKING:
    from luthier.core.engine import Engine
    from luthier.knowledge.base import KnowledgeBase

__all__ = ["DEFAULT", "MOST", "MOST_STEPS", "build", "check_retrieval", "resolved", "search"]

DEFAULT = ({"name": "hybrid"},)
MOST_STEPS = 12


def search(
    base: KnowledgeBase,
    question: str,
    k: int = 5,
    where: Filter | None = None,
    *,
    retrieval: Sequence[Mapping[str, Any]] | None = None,
    history: Sequence[str] = (),
    reranker: Engine | None = None,
    notes: list[Note] | None = None,
) -> list[Hit]:
    """The ``k`` best chunks.

    A model that fails in a step costs that step only: the search goes on with the question, or the order, as it is. ``notes`` gathers that, and
    what else the steps did. Raises InputError for an empty question, a wrong ``k``, wrong steps, and steps that need a model which is not there.
    """
    if not isinstance(question, str) or not question.strip():
        raise InputError("question must not be empty")
    if not 1 <= k <= MOST:
        raise InputError(f"k must be 1 to {MOST}; got {k}")
    tools = SearchTools(
        base.current,
        base.embedder.embed,
        datetime.now(UTC),
        base.ask,
        reranker,
        base.embedder.embed_queries,
        folder=folder_of(base.store, base.name),
        embedder=base.embedder.digest,
        fields=partial(_fields, base),
        notes=[] if notes is None else notes,
    )
    steps = retrieval if retrieval is not None else base.record.retrieval
    text = question.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair is no text
    return build(steps, tools)(Query(text, k, where, tuple(history)))[:k]


def build(steps: Sequence[Mapping[str, Any]], tools: SearchTools) -> Search:
    """The chain of ``steps``, the first one outermost; without one at the end that asks the index, ``hybrid`` is it.

    Raises what ``check_retrieval`` raises.
    """
    chain: Search | None = None
    for entry, config in reversed(_configured(steps)):
        chain = partial(_step, entry, config, tools, chain)
    assert chain is not None
    return chain


def check_retrieval(steps: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError or NotFoundError unless ``steps`` can be a search."""
    _configured(steps)


def resolved(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``steps`` with the one at the end and all options, those that were not given with their defaults. Raises as ``check_retrieval``."""
    return [{"name": entry.name, **config.model_dump(mode="json")} for entry, config in _configured(steps)]


def _configured(steps: Sequence[Mapping[str, Any]]) -> list[tuple[catalog.Entry, Any]]:
    """Entries with their options; ``hybrid`` is added where none asks the index."""
    if isinstance(steps, str | Mapping) or len(steps) > MOST_STEPS:
        got = f"{len(steps)} steps" if not isinstance(steps, str | Mapping) else type(steps).__name__
        raise InputError(f"retrieval must be a list of at most {MOST_STEPS} steps; got {got}")
    found = [_entry(place, step) for place, step in enumerate(steps, 1)]
    if not found or not found[-1][0].optional("FIRST"):
        found += [_entry(len(found) + 1, step) for step in DEFAULT]
    for entry, _ in found[:-1]:
        if entry.optional("FIRST"):
            raise InputError(f"retrieval: {entry.name} asks the index itself, so it must be the last step")
    return found


def _entry(place: int, step: Mapping[str, Any]) -> tuple[catalog.Entry, Any]:
    if not isinstance(step, Mapping) or not isinstance(step.get("name"), str):
        raise InputError(f"retrieval: step {place} needs a name, one of {', '.join(catalog.names('retrievers'))}")
    entry = catalog.load("retrievers", step["name"])
    return entry, entry.configure({key: value for key, value in step.items() if key != "name"})


def _step(entry: catalog.Entry, config: Any, tools: SearchTools, inner: Search | None, query: Query) -> list[Hit]:
    found: list[Hit] = entry(query, config, tools, inner)
    return found


def _fields(base: KnowledgeBase, where: Filter | None) -> dict[str, list[str]]:
    """The fields of the documents that ``where`` may see, with their values as the index keeps them; dates have conditions of their own."""
    found: dict[str, set[str]] = {}
    labels = None if where is None or where.labels is None else set(where.labels)
    for each in base.documents():
        if each.status == "ready" and (labels is None or not each.labels or labels & set(each.labels)):
            for name, value in {"language": each.language, "media_type": each.media_type, **each.meta}.items():
                listed = value if isinstance(value, list | tuple) else (value,)
                found.setdefault(name, set()).update(tag("", one)[1:] for one in listed if _is_plain(one))
    return {name: sorted(values) for name, values in sorted(found.items()) if values and name != "date"}


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool) and value != ""
