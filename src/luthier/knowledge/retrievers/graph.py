"""Chunks that state something about the question's entities, or about what these are related to: answers that no single chunk holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.graph_paths import find
from luthier.knowledge.index import Filter
from luthier.knowledge.retrievers._fusion import by_rank
from luthier.knowledge.retrievers._query import MOST, Query, Search, SearchTools


class Config(EntryConfig):
    """``hops``: how many relations away from the question's entities is looked. ``linked`` entities at most are taken whose names are only
    like the question (cosine ``least`` or more), besides those that it names. ``weight`` of the graph's list beside that of the inner search,
    which has 1; ``candidates`` of each. ``inner`` off: the graph alone.
    """

    hops: int = Field(default=2, ge=1, le=5)
    linked: int = Field(default=3, ge=0, le=50)
    least: float = Field(default=0.5, ge=-1.0, le=1.0)
    weight: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    candidates: int = Field(default=30, ge=1, le=MOST)
    inner: bool = True


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """Reciprocal rank fusion of the graph's chunks and the inner search's. ``meta["path"]`` of a hit says how the graph came to it. Needs the
    base's graph (``luthier kb graph``). Raises InputError without one."""
    vector = tools.vector_of(query)
    most = max(config.candidates, query.k)

    def visible(documents: Iterable[str]) -> set[str]:
        """Asked of the index itself, so that the graph shows nothing that a search would not."""
        left, seen = set(documents), set[str]()
        while left:
            asked = tuple(sorted(left))[:200]
            where = replace(query.where or Filter(), documents=asked)
            hits = tools.index.dense(vector, 8 * len(asked), where, exact=True)
            seen |= {hit.document for hit in hits}
            left -= seen if len(hits) >= 8 * len(asked) else set(asked)
        return seen

    allowed = None
    if query.where is not None and query.where != Filter():
        wanted = set(query.where.documents)
        allowed = (lambda documents: visible(wanted & set(documents))) if wanted else visible
    found = find(
        tools.folder, query.text, vector, tools.embedder, visible=allowed, hops=config.hops, linked=config.linked,
        least=config.least, most=most,
    )  # fmt: skip
    by_id = {hit.chunk.id: hit for hit in tools.index.get([each.chunk for each in found])}
    own = [
        replace(
            by_id[each.chunk],
            score=each.score,
            scores={"graph": each.score},
            meta={**by_id[each.chunk].meta, "path": each.path},
        )
        for each in found
        if each.chunk in by_id
    ]
    if not config.inner:
        return own[: query.k]
    return by_rank([own, inner(replace(query, k=most))], [config.weight, 1.0], query.k)
