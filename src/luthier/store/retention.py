"""How long traces are kept: old ones are deleted a few at a time, so that whoever writes meanwhile hardly waits.

Traces that somebody said something of are kept, unless they are asked for too: they are what the next training set is made of. The edges
of the lineage stay in every case: they hold ids and counts, no content, and say that a dataset was made of so many statements.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select

from luthier.core.errors import InputError
from luthier.store.database import Store, feedback, traces
from luthier.store.trace_query import TraceFilter, where_of

AT_ONCE = 500
"""Traces that are deleted in one transaction: a few milliseconds."""


@dataclass(frozen=True)
class Purged:
    """What was deleted, and how many traces were old enough but stayed because of feedback."""

    traces: int = 0
    feedback: int = 0
    kept: int = 0


def purge(
    store: Store,
    *,
    days: float | None = None,
    max_rows: int | None = None,
    matching: TraceFilter | None = None,
    rated_too: bool = False,
    stopped: threading.Event | None = None,
    pause_s: float = 0.0,
) -> Purged:
    """Delete traces that are older than ``days``, or beyond the newest ``max_rows``, or all that ``matching`` fits (alone, or of the old ones).

    Traces with explicit feedback stay unless ``rated_too``; what was only inferred goes with its trace. ``stopped`` ends it between two
    transactions, ``pause_s`` is waited there. Deleted rows are overwritten in SQLite's file. Raises InputError when nothing is chosen.
    """
    if days is None and max_rows is None and (matching is None or matching == TraceFilter()):
        raise InputError(
            "purge needs days, max_rows, or a filter that says which traces go", hint="luthier traces purge --days 30"
        )
    for name, value in (("days", days), ("max_rows", max_rows)):
        if value is not None and value < 0:
            raise InputError(f"{name} must be >= 0; got {value}")
    gone = said = kept = 0
    stopped = stopped or threading.Event()
    for ids, rated in _batches(store, days, max_rows, matching, stopped):
        doomed = [each for each in ids if rated_too or each not in rated]
        kept += len(ids) - len(doomed)
        if doomed:
            with store.write() as connection:
                _overwrite(connection)
                said += connection.execute(delete(feedback).where(feedback.c.trace_id.in_(doomed))).rowcount
                gone += connection.execute(delete(traces).where(traces.c.id.in_(doomed))).rowcount
        if pause_s and stopped.wait(pause_s):
            break
    return Purged(gone, said, kept)


def _batches(
    store: Store, days: float | None, max_rows: int | None, matching: TraceFilter | None, stopped: threading.Event
) -> Iterator[tuple[list[str], set[str]]]:
    """Ids of what is to go, oldest first, with those of them that somebody said something of."""
    where = [where_of(matching)] if matching is not None else []
    bound = _bound(store, days, max_rows)
    if bound is not None:
        where.append(bound)
    elif matching is None:
        return
    at = ("", "")
    while not stopped.is_set():
        after = or_(traces.c.created_at > at[0], and_(traces.c.created_at == at[0], traces.c.id > at[1]))
        query = select(traces.c.created_at, traces.c.id).where(after, *where)
        with store.read() as connection:
            rows = connection.execute(query.order_by(traces.c.created_at, traces.c.id).limit(AT_ONCE)).all()
            ids = [row.id for row in rows]
            mentioned = or_(feedback.c.trace_id.in_(ids), feedback.c.over.in_(ids))
            named = select(feedback.c.trace_id, feedback.c.over).where(feedback.c.kind == "explicit", mentioned)
            rated = {each for row in connection.execute(named) for each in row}
        if not ids:
            return
        at = (rows[-1].created_at, rows[-1].id)
        yield ids, rated


def _bound(store: Store, days: float | None, max_rows: int | None) -> ColumnElement[bool] | None:
    """Traces older than ``days``, or beyond the newest ``max_rows``; None when neither holds for any."""
    bounds: list[ColumnElement[bool]] = []
    if days is not None:
        oldest = datetime.now(UTC) - timedelta(days=days)
        bounds.append(traces.c.created_at < oldest.isoformat(timespec="milliseconds").replace("+00:00", "Z"))
    if max_rows is not None:
        newest = select(traces.c.created_at, traces.c.id).order_by(traces.c.created_at.desc(), traces.c.id.desc())
        with store.read() as connection:
            row = connection.execute(newest.offset(max_rows).limit(1)).first()
        if row is not None:
            same = and_(traces.c.created_at == row.created_at, traces.c.id <= row.id)
            bounds.append(or_(traces.c.created_at < row.created_at, same))
    return or_(*bounds) if bounds else None


def _overwrite(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA secure_delete = ON")


def count_traces(store: Store) -> int:
    """How many traces there are."""
    with store.read() as connection:
        return int(connection.execute(select(func.count()).select_from(traces)).scalar_one())
