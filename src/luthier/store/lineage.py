"""Lineage: what made a thing, and what it made, down to the answers that it gave.

Edges are written by whoever consumes or produces something. Served requests and feedback are not edges of their own (there are
too many): they are joined from their tables and shown as one summary a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, and_, func, insert, or_, select
from sqlalchemy.exc import IntegrityError

from luthier.core.errors import InputError, NotFoundError, did_you_mean
from luthier.store.database import Store, edges, feedback, models, open_store, runs, traces
from luthier.store.home import now

KINDS = ("dataset", "run", "model", "endpoint", "trace", "feedback", "task", "knowledge")
Direction = Literal["ancestors", "descendants"]

_LATEST = 5
_SNIPPET = 80
PURGED = "purged"  # stands for the model of answers that are not kept any more
_EXPLICIT = feedback.c.kind == "explicit"
_ALL = ":*"  # ends the id of a summary node: all traces (or all feedback) of one model


@dataclass(frozen=True)
class Node:
    """A thing in the lineage. ``label`` is for people (the name of a dataset whose ``id`` is its digest)."""

    kind: str
    id: str
    label: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"lineage node kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        if not self.id:
            raise InputError(f"a lineage node of kind {self.kind} needs an id; got an empty one")


@dataclass(frozen=True)
class Edge:
    """``source`` went into ``target``."""

    source: Node
    relation: str
    target: Node


@dataclass(frozen=True)
class Graph:
    """Everything that leads to ``root`` and everything that comes of it. ``details`` says more of a node, for people."""

    root: Node
    edges: tuple[Edge, ...]
    details: Mapping[Node, Mapping[str, Any]]

    def tree(self, direction: Direction) -> dict[str, Any]:
        """Nested ``{kind, id, label, relation, detail, children}`` from ``root``; what was shown before is not unfolded again."""
        if direction not in ("ancestors", "descendants"):
            raise InputError(f"direction must be ancestors or descendants; got {direction!r}")
        return self._branch(self.root, "", direction, set())

    def _branch(self, node: Node, relation: str, direction: Direction, seen: set[Node]) -> dict[str, Any]:
        children: list[dict[str, Any]] = []
        out = {**_plain(node), "relation": relation, "detail": dict(self.details.get(node, {})), "children": children}
        if node in seen:
            return out | {"again": True}
        seen.add(node)
        for edge in self.edges:
            near, far = (edge.target, edge.source) if direction == "ancestors" else (edge.source, edge.target)
            if near == node:
                children.append(self._branch(far, edge.relation, direction, seen))
        return out

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON: root, nodes with their details, edges by node."""
        nodes = list(dict.fromkeys([self.root, *(n for e in self.edges for n in (e.source, e.target))]))
        return {
            "root": _plain(self.root),
            "nodes": [{**_plain(node), "detail": dict(self.details.get(node, {}))} for node in nodes],
            "edges": [
                {"source": _plain(e.source), "relation": e.relation, "target": _plain(e.target)} for e in self.edges
            ],
        }


def record_edge(store: Store, source: Node, relation: str, target: Node) -> None:
    """Write that ``source`` went into ``target``. Writing it again changes nothing."""
    if source == target:
        raise InputError(f"a lineage edge joins two things; got {source.kind} {source.id} twice")
    row = {
        "source_kind": source.kind,
        "source_id": source.id,
        "relation": relation,
        "target_kind": target.kind,
        "target_id": target.id,
        "source_label": source.label,
        "target_label": target.label,
        "created_at": now(),
    }
    same = and_(*(edges.c[column.name] == row[column.name] for column in edges.primary_key))
    with store.read() as connection:
        if connection.execute(select(func.count()).where(same)).scalar_one():
            return
    try:
        with store.write() as connection:
            connection.execute(insert(edges).values(**row))
    except IntegrityError:  # another process wrote the same edge in between
        with store.read() as connection:
            if not connection.execute(select(func.count()).where(same)).scalar_one():
                raise


def lineage(name: str, store: Store | Path | str | None = None) -> Graph:
    """The graph around a model, run, dataset, task, trace or feedback.

    ``name`` is a model name, a run id or its start, a run name, a dataset's name, digest or its start, a trace or feedback id.
    Raises NotFoundError with near names, InputError when a start fits several things.
    """
    store = store if isinstance(store, Store) else open_store(store)
    with store.read() as connection:
        walk = _Walk(connection)
        root = walk.resolve(name)
        found: dict[Edge, None] = {}
        for direction in ("ancestors", "descendants"):
            _collect(walk, root, direction, found)
        recorded = {(edge.source, edge.target) for edge in found if edge not in walk.implied}
        found = {e: None for e in found if e not in walk.implied or (e.source, e.target) not in recorded}
        nodes = {root} | {node for edge in found for node in (edge.source, edge.target)}
        return Graph(root, tuple(found), {node: walk.detail(node) for node in nodes})


def _collect(walk: _Walk, root: Node, direction: str, found: dict[Edge, None]) -> None:
    seen, frontier = {root}, [root]
    while frontier:
        node = frontier.pop(0)
        for edge in walk.into(node) if direction == "ancestors" else walk.out_of(node):
            found.setdefault(edge)
            far = edge.source if direction == "ancestors" else edge.target
            if far not in seen:
                seen.add(far)
                frontier.append(far)


class _Walk:
    """Steps along recorded edges and along what the tables themselves imply (a model's run, base, target, traces)."""

    def __init__(self, connection: Connection) -> None:
        self.sql = connection
        self.models = {row.name: row for row in connection.execute(select(models))}
        self.implied: set[Edge] = set()

    def resolve(self, name: str) -> Node:
        """The node that a user means by ``name``."""
        if name in self.models:
            return self._model(name)
        for table, kind in ((traces, "trace"), (feedback, "feedback"), (runs, "run")):
            if self.sql.execute(select(table.c.id).where(table.c.id == name)).first():
                return Node(kind, name)
        row = self.sql.execute(select(runs.c.id).where(runs.c.name == name).order_by(runs.c.created_at.desc())).first()
        if row:
            return Node("run", row.id)
        found = self._recorded(name) or self._starting(name)
        if len(found) > 1:
            raise InputError(f"{name!r} fits several: {', '.join(f'{n.kind} {n.id}' for n in found[:5])}")
        if found:
            return found[0]
        known = {*self.models, *self.sql.execute(select(runs.c.name).distinct()).scalars()}
        raise NotFoundError(
            f"{name!r} is not in the lineage. {did_you_mean(name, known - {''})}",
            hint="luthier models",
        )

    def _recorded(self, name: str) -> list[Node]:
        """Datasets, tasks and others that only edges know, by id or label."""
        return self._ends(lambda c, end: or_(c[f"{end}_id"] == name, c[f"{end}_label"] == name))

    def _starting(self, name: str) -> list[Node]:
        """Things whose id starts with ``name`` (six characters at least, so that a typo is not taken for a digest)."""
        if len(name) < 6:
            return []
        found = self._ends(lambda c, end: c[f"{end}_id"].startswith(name, autoescape=True))
        for table, kind in ((runs, "run"), (traces, "trace")):
            starts = select(table.c.id).where(table.c.id.startswith(name, autoescape=True)).limit(6)
            found += [Node(kind, each) for each in self.sql.execute(starts).scalars()]
        return list(dict.fromkeys(found))

    def _ends(self, fits: Any) -> list[Node]:
        out: dict[Node, None] = {}
        for end in ("source", "target"):
            kind, identity, label = (edges.c[f"{end}_{part}"] for part in ("kind", "id", "label"))
            for row in self.sql.execute(select(kind, identity, label).distinct().where(fits(edges.c, end)).limit(6)):
                out.setdefault(self._node(*row))
        return list(out)

    def _model(self, name: str) -> Node:
        row = self.models.get(name)
        return Node("endpoint" if row is not None and row.kind == "endpoint" else "model", name)

    def _node(self, kind: str, identity: str, label: str) -> Node:
        if kind in ("model", "endpoint") and identity in self.models:
            return self._model(identity)
        return Node(kind, identity, label)

    def into(self, node: Node) -> list[Edge]:
        """Edges that end in ``node``."""
        if node.kind in ("trace", "feedback"):
            return self._into_answer(node)
        found = [e for e in self._edges("target", node) if e.source.kind not in ("trace", "feedback")]
        implied = [e for name in self.models for e in self._implied_into(self._model(name)) if e.target == node]
        return found + implied + self._collected(node)

    def out_of(self, node: Node) -> list[Edge]:
        """Edges that start in ``node``."""
        if node.kind in ("trace", "feedback"):
            return self._out_of_answer(node)
        implied = [e for name in self.models for e in self._implied_into(self._model(name)) if e.source == node]
        found = self._edges("source", node) + implied
        if node.kind in ("model", "endpoint") and self._count(traces.c.model == node.id):
            found.append(Edge(node, "answered", Node("trace", node.id + _ALL)))
        return found

    def _edges(self, end: str, node: Node) -> list[Edge]:
        kinds = ("model", "endpoint") if node.kind in ("model", "endpoint") else (node.kind,)
        query = select(edges).where(edges.c[f"{end}_kind"].in_(kinds), edges.c[f"{end}_id"] == node.id)
        if end == "target":  # answers that went into a dataset are many: see _collected
            query = query.where(edges.c.source_kind.not_in(("trace", "feedback")))
        rows = self.sql.execute(query.order_by(edges.c.created_at, edges.c.source_id, edges.c.target_id)).all()
        out = [
            Edge(
                self._node(row.source_kind, row.source_id, row.source_label),
                row.relation,
                self._node(row.target_kind, row.target_id, row.target_label),
            )
            for row in rows
        ]
        return [edge for edge in out if edge.source != edge.target]

    def _implied_into(self, node: Node) -> list[Edge]:
        """What a model's own row says of its origin; dropped where a recorded edge joins the same two."""
        row = self.models.get(node.id) if node.kind in ("model", "endpoint") else None
        if row is None:
            return []
        out, target, run = [], (row.meta or {}).get("target"), Node("run", row.run_id) if row.run_id else None
        if run:
            out.append(Edge(run, "made", node))
        if target and target != row.name:
            out.append(Edge(self._model(target), "served as" if row.kind == "endpoint" else "exported as", node))
        elif row.base and row.base != row.name:
            out.append(Edge(self._model(row.base), "base of", run or node))
        self.implied.update(out)
        return out

    def _collected(self, node: Node) -> list[Edge]:
        """Feedback and traces that went into ``node``, one edge a model."""
        out = []
        into = and_(edges.c.target_kind == node.kind, edges.c.target_id == node.id)
        for kind in ("feedback", "trace"):
            joined = edges.outerjoin(feedback, feedback.c.id == edges.c.source_id) if kind == "feedback" else edges
            on = feedback.c.trace_id if kind == "feedback" else edges.c.source_id
            whose = func.coalesce(traces.c.model, PURGED)
            query = select(whose, edges.c.relation, func.count())
            query = query.select_from(joined.outerjoin(traces, traces.c.id == on))
            query = query.where(into, edges.c.source_kind == kind).group_by(whose, edges.c.relation)
            for model, relation, count in self.sql.execute(query.order_by(whose)):
                out.append(Edge(Node(kind, model + _ALL), f"{relation} ({count})", node))
        return out

    def _into_answer(self, node: Node) -> list[Edge]:
        if node.id.endswith(_ALL):
            model = node.id.removesuffix(_ALL)
            if model == PURGED:
                return []
            if node.kind == "feedback":
                return [Edge(Node("trace", node.id), "rated by", node)]
            return [Edge(self._model(model), "answered", node)]
        if node.kind == "feedback":
            trace = self.sql.execute(select(feedback.c.trace_id).where(feedback.c.id == node.id)).scalar_one_or_none()
            return [Edge(Node("trace", trace), "rated by", node)] if trace else []
        row = self.sql.execute(select(traces.c.model, traces.c.details).where(traces.c.id == node.id)).first()
        if row is None or not row.model:
            return []
        known = ((row.details or {}).get("knowledge") or [{}])[0]
        if not known.get("knowledge_base"):
            return [Edge(self._model(row.model), "answered", node)]
        version = next((step["version"] for step in known.get("steps", ()) if "version" in step), None)
        label = "" if version is None else f"{known['knowledge_base']} version {version}"
        found = [Edge(Node("knowledge", known["knowledge_base"], label), "answered from", node)]
        return [*found, Edge(self._model(known["writer"]), "wrote", node)] if known.get("writer") else found

    def _out_of_answer(self, node: Node) -> list[Edge]:
        if not node.id.endswith(_ALL):
            out = self._edges("source", node)
            if node.kind == "trace":
                said = select(feedback.c.id).where(feedback.c.trace_id == node.id).order_by(feedback.c.created_at)
                out += [Edge(node, "rated by", Node("feedback", each)) for each in self.sql.execute(said).scalars()]
            return out
        model = node.id.removesuffix(_ALL)
        of_model = feedback.join(traces, traces.c.id == feedback.c.trace_id)
        if node.kind == "trace":
            rated = select(func.count()).select_from(of_model).where(traces.c.model == model, _EXPLICIT)
            out = [Edge(node, "rated by", Node("feedback", node.id))] if self.sql.execute(rated).scalar_one() else []
            joined, kind = edges.join(traces, traces.c.id == edges.c.source_id), "trace"
        else:
            out, kind = [], "feedback"
            joined = edges.join(of_model, feedback.c.id == edges.c.source_id)
        columns = (edges.c.relation, edges.c.target_kind, edges.c.target_id)
        query = select(*columns, func.max(edges.c.target_label), func.count()).select_from(joined)
        query = query.where(edges.c.source_kind == kind, traces.c.model == model).group_by(*columns)
        for relation, *target, count in self.sql.execute(query.order_by(edges.c.target_id)):
            out.append(Edge(node, f"{relation} ({count})", self._node(*target)))
        return out

    def _count(self, where: ColumnElement[bool]) -> int:
        return int(self.sql.execute(select(func.count()).where(where)).scalar_one())

    def detail(self, node: Node) -> dict[str, Any]:
        """What to show beside a node."""
        if node.kind in ("model", "endpoint") and node.id in self.models:
            row = self.models[node.id]
            keys = ("method", "objective", "source", "format", "quantization", "strategy")
            said = {key: row.meta[key] for key in keys if (row.meta or {}).get(key)}
            return {"kind": row.kind, "digest": row.digest, "created_at": row.created_at, **said}
        if node.kind == "run":
            run = self.sql.execute(select(runs).where(runs.c.id == node.id)).first()
            return (
                {"kind": run.kind, "name": run.name, "status": run.status, "created_at": run.created_at} if run else {}
            )
        if node.kind == "trace":
            return self._traces_of(node)
        if node.kind == "feedback":
            return self._feedback_of(node)
        return {}

    def _traces_of(self, node: Node) -> dict[str, Any]:
        if not node.id.endswith(_ALL):
            row = self.sql.execute(select(traces).where(traces.c.id == node.id)).first()
            return _answer(row, self._ratings([node.id])) if row else {}
        model = node.id.removesuffix(_ALL)
        latest = select(traces).where(traces.c.model == model).order_by(traces.c.created_at.desc(), traces.c.id.desc())
        rows = self.sql.execute(latest.limit(_LATEST)).all()
        said = self._ratings([row.id for row in rows])
        return {"count": self._count(traces.c.model == model), "latest": [_answer(row, said) for row in rows]}

    def _ratings(self, trace_ids: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
        out: dict[str, list[dict[str, Any]]] = {}
        query = select(feedback).where(feedback.c.trace_id.in_(list(trace_ids))).order_by(feedback.c.created_at)
        for row in self.sql.execute(query):
            out.setdefault(row.trace_id, []).append(_statement(row))
        return out

    def _feedback_of(self, node: Node) -> dict[str, Any]:
        if not node.id.endswith(_ALL):
            row = self.sql.execute(select(feedback).where(feedback.c.id == node.id)).first()
            return _statement(row) if row else {}
        rating = feedback.c.rating
        query = select(func.count(), func.count().filter(rating == 1), func.count().filter(rating == -1))
        query = query.select_from(feedback).join(traces, traces.c.id == feedback.c.trace_id)
        whose = traces.c.model == node.id.removesuffix(_ALL)
        count, up, down = self.sql.execute(query.where(whose, _EXPLICIT)).one()
        return {"count": count, "up": up, "down": down}


def _plain(node: Node) -> dict[str, str]:
    return {"kind": node.kind, "id": node.id, "label": node.label}


def _snippet(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SNIPPET else line[: _SNIPPET - 1] + "…"


def _answer(row: Any, said: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    asked = [str(m.get("content", "")) for m in row.messages or () if m.get("role", "user") == "user"]
    return {
        "id": row.id,
        "created_at": row.created_at,
        "model_digest": row.model_digest,
        "question": _snippet(asked[-1] if asked else ""),
        "answer": _snippet(row.answer),
        "feedback": said.get(row.id, []),
    }


def _statement(row: Any) -> dict[str, Any]:
    said = {key: getattr(row, key) for key in ("rating", "label", "corrected", "comment", "over", "event")}
    return {key: value for key, value in said.items() if value not in (None, "")}
