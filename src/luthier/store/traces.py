"""Traces of served requests, and what people said of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import RowMapping, insert, select

from luthier.core.errors import InputError, NotFoundError
from luthier.core.trace import Feedback, Trace
from luthier.store.database import Store, feedback, traces
from luthier.store.home import new_id, now


def record_trace(store: Store, trace: Trace) -> None:
    """Write one trace."""
    record_traces(store, [trace])


def record_traces(store: Store, many: Sequence[Trace]) -> None:
    """Write traces in one transaction."""
    if many:
        with store.write() as connection:
            connection.execute(insert(traces), [_row(each) for each in many])


def find_trace(store: Store, trace_id: str) -> Trace:
    """A trace by its id. Raises NotFoundError."""
    with store.read() as connection:
        row = connection.execute(select(traces).where(traces.c.id == trace_id)).mappings().first()
    if row is None:
        raise NotFoundError(
            f"trace {trace_id!r} is not known; the id is in the X-Luthier-Trace-Id header of each answer"
        )
    return _trace(row)


def list_traces(store: Store, model: str | None = None, limit: int = 100) -> list[Trace]:
    """The newest traces, newest first."""
    query = select(traces).order_by(traces.c.created_at.desc(), traces.c.id.desc()).limit(limit)
    with store.read() as connection:
        rows = connection.execute(query if model is None else query.where(traces.c.model == model)).mappings().all()
    return [_trace(row) for row in rows]


def record_feedback(
    store: Store,
    trace_id: str,
    rating: int | None = None,
    label: str | None = None,
    corrected: str | None = None,
    comment: str = "",
) -> Feedback:
    """Write what somebody said of an answer. ``rating`` is -1 or 1; at least one of the four must be given.

    Raises NotFoundError for an unknown trace, InputError for an empty or impossible statement.
    """
    if rating not in (None, -1, 1) or isinstance(rating, bool):
        raise InputError(f"rating must be -1 or 1; got {rating!r}")
    if rating is None and label is None and corrected is None and not comment:
        raise InputError("feedback needs at least one of rating, label, corrected, comment; got none")
    find_trace(store, trace_id)
    said = Feedback(new_id("fb"), trace_id, now(), rating, label, corrected, comment)
    with store.write() as connection:
        connection.execute(insert(feedback).values(**{f.name: getattr(said, f.name) for f in fields(said)}))
    return said


def list_feedback(store: Store, model: str | None = None) -> list[tuple[Trace, Feedback]]:
    """Every statement with its trace, oldest first."""
    said = [column.label(f"said_{column.name}") for column in feedback.c]
    query = select(traces, *said).join(feedback, feedback.c.trace_id == traces.c.id)
    query = query.order_by(feedback.c.created_at, feedback.c.id)
    with store.read() as connection:
        rows = connection.execute(query if model is None else query.where(traces.c.model == model)).mappings().all()
    return [(_trace(row), Feedback(**{f.name: row[f"said_{f.name}"] for f in fields(Feedback)})) for row in rows]


def _row(trace: Trace) -> dict[str, Any]:
    row = {field.name: getattr(trace, field.name) for field in fields(trace)}
    plain = {"parameters": dict(trace.parameters), "details": dict(trace.details)}
    return row | {"messages": [dict(each) for each in trace.messages], **plain}


def _trace(row: RowMapping | Mapping[str, Any]) -> Trace:
    values = {field.name: row[field.name] for field in fields(Trace)}
    return Trace(
        **values
        | {"messages": tuple(values["messages"] or ())}
        | {name: dict(values[name] or {}) for name in ("parameters", "details")}
    )
