"""From the entities that a question names to the chunks around them, over the relations of a base's graph.

Entities are ranked by personalised PageRank from those of the question (Gutierrez et al. 2024, HippoRAG, https://arxiv.org/abs/2405.14831), relations
by their ends, their likeness to the question, and whether they lie on a shortest path between two of its entities.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from luthier.core.engine import Vectors
from luthier.knowledge.graph import FILE, Relation, normal_name, open_graph, vectors_of

MOST_RELATIONS = 4000
"""Of the neighbourhood that is looked at."""
_DAMPING = 0.5
"""Share of the walk that goes on; the rest begins again at the question's entities (HippoRAG's value)."""
_ROUNDS = 30
_ON_A_PATH = 2.0
_LONGEST_NAME = 8
_WIDE = re.compile(r"[\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]")

Visible = Callable[[Iterable[str]], set[str]]
"""Which of these documents the one who asks may see."""


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk, its score, and the path from an entity of the question to what it states, for people."""

    chunk: str
    score: float
    path: str


@dataclass(frozen=True)
class _Names:
    """The entities of a graph: ids by name, and all vectors."""

    ids: Mapping[str, int]
    rows: Sequence[int]
    vectors: Vectors


def find(
    folder: Path | None,
    question: str,
    vector: Vectors,
    embedder: str,
    *,
    visible: Visible | None = None,
    hops: int = 2,
    linked: int = 5,
    least: float = 0.5,
    most: int = 50,
) -> list[Found]:
    """The chunks that state something around the entities of ``question``, best first.

    ``vector`` is the question's, ``embedder`` the digest of what made it. Entities are those that the question names, and up to ``linked`` whose
    names are like it (cosine ``least`` or more). Only relations from documents that are ``visible`` are seen, followed or shown.
    Raises InputError when the base has no graph.
    """
    with closing(open_graph(folder)) as connection:
        assert folder is not None
        stamp = (folder / FILE).stat()
        names = _names(folder / FILE, (stamp.st_mtime_ns, stamp.st_size), embedder)
        seeds = _linked(names, question, vector, linked, least)
        edges = _around(connection, list(seeds), hops, visible)
        if not edges:
            return []
        rank = _pagerank(edges, seeds)
        likeness = _likeness(connection, edges, vector, embedder)
        tree = _tree(edges, seeds)
        between = _between(edges, seeds, hops)
        best: dict[str, tuple[float, Relation]] = {}
        for edge in edges:
            score = (rank[edge.source] * rank[edge.target]) ** 0.5 * likeness[edge.id]
            score *= _ON_A_PATH if edge.id in between else 1.0
            if edge.chunk not in best or score > best[edge.chunk][0]:
                best[edge.chunk] = (score, edge)
        order = sorted(best, key=lambda chunk: (-best[chunk][0], chunk))[:most]
        shown = _shown_names(connection, {end for edge in edges for end in (edge.source, edge.target)})
        return [Found(chunk, best[chunk][0], _path(best[chunk][1], tree, shown)) for chunk in order]


@lru_cache(maxsize=8)
def _names(path: Path, stamp: tuple[int, int], embedder: str) -> _Names:
    """Read once for each state of the file."""
    with closing(open_graph(path.parent)) as connection:
        ids = {str(key): int(id_) for key, id_ in connection.execute("SELECT key, id FROM entities")}
        found = vectors_of(connection, "entity", None, embedder)
    rows = sorted(found)
    return _Names(ids, rows, np.stack([found[row] for row in rows]) if rows else np.zeros((0, 1), np.float32))


def _linked(names: _Names, question: str, vector: Vectors, most: int, least: float) -> dict[int, float]:
    """The question's entities with their weights: 1 for one that it names, the cosine for one that is like it."""
    seeds = dict.fromkeys(_named(names.ids, question), 1.0)
    if len(names.rows) and most:
        likeness = names.vectors @ np.asarray(vector, np.float32)
        for at in np.argsort(-likeness)[:most]:
            if likeness[at] >= least:
                seeds.setdefault(names.rows[at], float(likeness[at]))
    return seeds


def _named(ids: Mapping[str, int], question: str) -> list[int]:
    """Entities whose names stand in the question; a name inside of a longer one that stands there, too, is not meant."""
    text = normal_name(question)
    words = text.split()
    spans: list[tuple[int, int, int]] = []
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    for first in range(len(words)):
        for last in range(first + 1, min(first + _LONGEST_NAME, len(words)) + 1):
            name = " ".join(words[first:last])
            if name in ids:
                spans.append((int(starts[first]), int(starts[first]) + len(name), ids[name]))
    if _WIDE.search(text):  # no spaces between words
        for first in range(len(text)):
            for last in range(first + 2, min(first + 24, len(text)) + 1):
                name = text[first:last]
                if name in ids and _WIDE.search(name):
                    spans.append((first, last, ids[name]))
    kept: list[tuple[int, int, int]] = []
    for span in sorted(spans, key=lambda each: each[0] - each[1]):
        if not any(span[0] < end and begin < span[1] for begin, end, _ in kept):
            kept.append(span)
    return [entity for _, _, entity in sorted(kept)]


def _around(connection: sqlite3.Connection, seeds: Sequence[int], hops: int, visible: Visible | None) -> list[Relation]:
    """The relations within ``hops`` of the seeds, over documents that may be seen."""
    edges: dict[int, Relation] = {}
    reached, frontier = set(seeds), list(seeds)
    for _ in range(hops):
        fresh = [edge for edge in _of(connection, frontier, MOST_RELATIONS - len(edges)) if edge.id not in edges]
        if visible is not None:
            seen = visible({edge.document for edge in fresh})
            fresh = [edge for edge in fresh if edge.document in seen]
        edges |= {edge.id: edge for edge in fresh}
        ends = {end for edge in fresh for end in (edge.source, edge.target)}
        frontier = sorted(ends - reached)
        reached |= ends
    return list(edges.values())


def _of(connection: sqlite3.Connection, entities: Sequence[int], most: int) -> list[Relation]:
    out: list[Relation] = []
    for start in range(0, len(entities), 400):
        part = entities[start : start + 400]
        marks = ", ".join("?" * len(part))
        query = f"SELECT * FROM relations WHERE source IN ({marks}) OR target IN ({marks}) ORDER BY id LIMIT ?"
        out += [Relation(*row) for row in connection.execute(query, (*part, *part, max(0, most - len(out))))]
    return out


def _pagerank(edges: Sequence[Relation], seeds: Mapping[int, float]) -> dict[int, float]:
    """Where a walk is that follows relations either way and begins again at the seeds; a share of it each."""
    from scipy.sparse import coo_array

    entities = sorted({end for edge in edges for end in (edge.source, edge.target)})
    place = {entity: at for at, entity in enumerate(entities)}
    ends = np.asarray([(place[edge.source], place[edge.target]) for edge in edges])
    rows, columns = np.concatenate([ends[:, 0], ends[:, 1]]), np.concatenate([ends[:, 1], ends[:, 0]])
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(entities),) * 2).tocsr()
    degree = np.asarray(links.sum(axis=0)).ravel()
    home = np.asarray([seeds.get(entity, 0.0) for entity in entities])
    if not home.any():
        home = np.ones(len(entities))
    home = home / home.sum()
    rank = home
    for _ in range(_ROUNDS):
        rank = (1 - _DAMPING) * home + _DAMPING * (links @ (rank / np.maximum(degree, 1.0)))
    return dict(zip(entities, map(float, rank), strict=True))


def _likeness(
    connection: sqlite3.Connection, edges: Sequence[Relation], vector: Vectors, embedder: str
) -> dict[int, float]:
    """How like each relation is to the question, from 0 to 1; a half where it is not known."""
    found = vectors_of(connection, "relation", [edge.id for edge in edges], embedder)
    own = np.asarray(vector, np.float32)
    return {edge.id: (1 + float(found[edge.id] @ own)) / 2 if edge.id in found else 0.5 for edge in edges}


def _neighbours(edges: Sequence[Relation]) -> dict[int, list[tuple[int, Relation]]]:
    out: dict[int, list[tuple[int, Relation]]] = defaultdict(list)
    for edge in edges:
        out[edge.source].append((edge.target, edge))
        out[edge.target].append((edge.source, edge))
    return out


def _tree(edges: Sequence[Relation], seeds: Iterable[int]) -> dict[int, tuple[int, Relation] | None]:
    """The shortest way back from each entity to the nearest seed: (the one before, the relation between), None at a seed."""
    near = _neighbours(edges)
    back: dict[int, tuple[int, Relation] | None] = {seed: None for seed in seeds if seed in near}
    waiting = deque(back)
    while waiting:
        entity = waiting.popleft()
        for other, edge in near[entity]:
            if other not in back:
                back[other] = (entity, edge)
                waiting.append(other)
    return back


def _between(edges: Sequence[Relation], seeds: Mapping[int, float], hops: int) -> set[int]:
    """The relations on shortest paths of at most ``2 * hops`` relations from one seed to another."""
    on_paths: set[int] = set()
    for seed in seeds:
        back = _tree(edges, [seed])
        for other in seeds:
            path = _back(other, back) if other != seed and other in back else []
            if 0 < len(path) <= 2 * hops:
                on_paths |= {edge.id for edge in path}
    return on_paths


def _back(entity: int, back: Mapping[int, tuple[int, Relation] | None]) -> list[Relation]:
    """The relations from ``entity`` to its seed."""
    out = []
    step = back.get(entity)
    while step is not None:
        out.append(step[1])
        step = back.get(step[0])
    return out


def _path(edge: Relation, back: Mapping[int, tuple[int, Relation] | None], names: Mapping[int, str]) -> str:
    """The way from a seed over ``edge``, as text: each step as it is stated."""
    nearer = min((edge.source, edge.target), key=lambda end: len(_back(end, back)) if end in back else MOST_RELATIONS)
    steps = [each for each in reversed(_back(nearer, back)) if each.id != edge.id]
    return "; ".join(f"{names[each.source]} — {each.relation} — {names[each.target]}" for each in (*steps, edge))


def _shown_names(connection: sqlite3.Connection, entities: Iterable[int]) -> dict[int, str]:
    listed = sorted(entities)
    out: dict[int, str] = {}
    for start in range(0, len(listed), 500):
        part = listed[start : start + 500]
        out |= dict(
            connection.execute(
                f"SELECT id, name FROM entities WHERE id IN ({', '.join('?' * len(part))})", part
            ).fetchall()
        )
    return out
