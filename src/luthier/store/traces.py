"""Traces of served requests: written many at once, found by id. Looking for traces is in ``store.trace_query``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import orjson
from sqlalchemy import Connection, RowMapping, insert, select

from luthier.core.errors import NotFoundError
from luthier.core.trace import Trace
from luthier.store.database import Store, to_json, traces

_NAMES = tuple(field.name for field in fields(Trace))
_JSON = ("messages", "parameters", "details")
_INSERT = f"INSERT INTO traces ({', '.join(_NAMES)}) VALUES ({', '.join('?' * len(_NAMES))})"


def record_trace(store: Store, trace: Trace) -> None:
    """Write one trace."""
    record_traces(store, [trace])


def record_traces(store: Store, many: Sequence[Trace]) -> None:
    """Write traces in one transaction.

    On SQLite the rows go to the driver as they are, which takes half the time: every served request pays for it.
    """
    if not many:
        return
    with store.write() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(_INSERT, [_values(each) for each in many])
        else:
            connection.execute(insert(traces), [_row(each) for each in many])


def find_trace(store: Store, trace_id: str, *, tenant: str | None = None) -> Trace:
    """A trace by its id, of one tenant's when that is said. Raises NotFoundError."""
    query = select(traces).where(traces.c.id == trace_id)
    with store.read() as connection:
        row = connection.execute(query if tenant is None else query.where(traces.c.tenant == tenant)).mappings().first()
    if row is None:
        raise NotFoundError(
            f"trace {trace_id!r} is not known; the id is in the X-Luthier-Trace-Id header of each answer"
        )
    return read_trace(row)


def find_traces(store: Store, ids: Iterable[str]) -> dict[str, Trace]:
    """The traces with these ids, as far as there are such."""
    wanted = list(dict.fromkeys(ids))
    found: dict[str, Trace] = {}
    with store.read() as connection:
        for start in range(0, len(wanted), 500):
            query = select(traces).where(traces.c.id.in_(wanted[start : start + 500]))
            found |= {row["id"]: read_trace(row) for row in connection.execute(query).mappings()}
    return found


def list_traces(store: Store, model: str | None = None, limit: int = 100) -> list[Trace]:
    """The newest traces, newest first."""
    query = select(traces).order_by(traces.c.created_at.desc(), traces.c.id.desc()).limit(limit)
    with store.read() as connection:
        return read_traces(connection, query if model is None else query.where(traces.c.model == model))


def read_traces(connection: Connection, query: Any) -> list[Trace]:
    """The traces that a query over the table gives."""
    return [read_trace(row) for row in connection.execute(query).mappings()]


def read_trace(row: RowMapping | Mapping[str, Any]) -> Trace:
    """The trace of a row of the table (which may have more columns)."""
    values = {name: row[name] for name in _NAMES}
    return Trace(
        **values
        | {"messages": tuple(values["messages"] or ())}
        | {name: dict(values[name] or {}) for name in ("parameters", "details")}
    )


def _values(trace: Trace) -> tuple[Any, ...]:
    """A row for SQLite's driver. Text that is not valid Unicode raises UnicodeEncodeError there."""
    return tuple(_json(getattr(trace, name)) if name in _JSON else getattr(trace, name) for name in _NAMES)


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS).decode()
    except (orjson.JSONEncodeError, TypeError):
        return to_json(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError


def _row(trace: Trace) -> dict[str, Any]:
    row = {name: getattr(trace, name) for name in _NAMES}
    plain = {"parameters": dict(trace.parameters), "details": dict(trace.details)}
    return row | {"messages": [dict(each) for each in trace.messages], **plain}
