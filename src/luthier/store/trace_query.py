"""Looking for traces: filters, pages, what is new, figures by model and day."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from sqlalchemy import (
    ColumnElement,
    Text,
    and_,
    case,
    cast,
    exists,
    func,
    literal_column,
    not_,
    or_,
    select,
    text,
    true,
)

from luthier.core.errors import InputError
from luthier.core.trace import Trace
from luthier.store.database import Store, feedback, traces
from luthier.store.traces import find_trace, read_traces

FeedbackFilter = Literal["any", "none", "good", "bad", "corrected", "implicit"]
ANY = "any"

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)")
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class TraceFilter:
    """Which traces. What is left out does not matter.

    ``since`` and ``until`` are ISO times, dates, or times ago (``90s``, ``30m``, ``2h``, ``7d``, ``4w``); until is excluded. ``text`` must occur in a
    message or the answer. ``feedback``: any, none, good, bad, corrected, or implicit. ``guardrail`` and ``cache`` are names, or ``any``.
    """

    model: str | None = None
    route: str | None = None
    tenant: str | None = None
    session: str | None = None
    key: str | None = None
    user: str | None = None
    operation: str | None = None
    since: str | None = None
    until: str | None = None
    errors: bool = False
    min_latency_s: float | None = None
    text: str | None = None
    feedback: FeedbackFilter | None = None
    finish_reason: str | None = None
    guardrail: str | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.feedback is not None and self.feedback not in get_args(FeedbackFilter):
            raise InputError(f"feedback must be one of {', '.join(get_args(FeedbackFilter))}; got {self.feedback!r}")
        for name in ("since", "until"):
            moment(getattr(self, name), name)


def moment(given: str | None, name: str = "since", *, now: datetime | None = None) -> str | None:
    """A time as traces write it (UTC, milliseconds), from an ISO time, a date, or a time ago. Raises InputError that names ``name``."""
    if given is None:
        return None
    ago = _AGO.fullmatch(given.strip().lower())
    try:
        if ago is not None:
            when = (now or datetime.now(UTC)) - timedelta(seconds=float(ago[1]) * _UNITS[ago[2]])
        else:
            when = datetime.fromisoformat(given.strip())
            when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
        return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{name} must be a time ago (30m, 2h, 7d), a date (2026-11-20) or an ISO time (2026-11-20T08:00); got {given!r}"
        ) from error


def where_of(wanted: TraceFilter) -> ColumnElement[bool]:
    """The filter as a condition on the table."""
    c = traces.c
    equal = {"model": c.model, "route": c.route, "tenant": c.tenant, "session": c.session, "key": c.key_id,
             "operation": c.operation, "finish_reason": c.finish_reason}  # fmt: skip
    out: list[ColumnElement[bool]] = [
        column == value for name, column in equal.items() if (value := getattr(wanted, name)) is not None
    ]
    if wanted.user is not None:
        out.append(c.parameters["user"].as_string() == wanted.user)
    if wanted.since is not None:
        out.append(c.created_at >= moment(wanted.since))
    if wanted.until is not None:
        out.append(c.created_at < moment(wanted.until, "until"))
    if wanted.errors:
        out.append(c.error != "")
    if wanted.min_latency_s is not None:
        out.append(c.latency_s >= wanted.min_latency_s)
    if wanted.cache is not None:
        out.append(c.cache != "" if wanted.cache == ANY else c.cache == wanted.cache)
    if wanted.guardrail is not None:
        out.append(_guardrail(wanted.guardrail))
    if wanted.text is not None:
        out.append(_holds(wanted.text))
    if wanted.feedback is not None:
        out.append(_said(wanted.feedback))
    return and_(true(), *out)


def query_traces(
    store: Store, wanted: TraceFilter | None = None, *, limit: int = 100, after: str | None = None
) -> list[Trace]:
    """The newest traces that ``wanted`` fits, newest first; with ``after`` (a trace's id) those that come after it in that order.

    Raises NotFoundError for an unknown ``after``.
    """
    where = [where_of(wanted or TraceFilter())]
    if after is not None:
        last = find_trace(store, after, tenant=wanted.tenant if wanted else None)
        same = and_(traces.c.created_at == last.created_at, traces.c.id < last.id)
        where.append(or_(traces.c.created_at < last.created_at, same))
    query = select(traces).where(*where).order_by(traces.c.created_at.desc(), traces.c.id.desc()).limit(limit)
    with store.read() as connection:
        return read_traces(connection, query)


def starting_with(store: Store, start: str, most: int = 6) -> list[str]:
    """Ids of traces that begin so."""
    query = select(traces.c.id).where(traces.c.id.startswith(start, autoescape=True)).order_by(traces.c.id).limit(most)
    with store.read() as connection:
        return [str(each) for each in connection.execute(query).scalars()]


def iterate_traces(store: Store, wanted: TraceFilter, *, at_once: int = 1000) -> Iterator[Trace]:
    """All traces that ``wanted`` fits, oldest first, read ``at_once`` at a time."""
    at = ("", "")
    while True:
        after = or_(traces.c.created_at > at[0], and_(traces.c.created_at == at[0], traces.c.id > at[1]))
        query = select(traces).where(where_of(wanted), after).order_by(traces.c.created_at, traces.c.id).limit(at_once)
        with store.read() as connection:
            found = read_traces(connection, query)
        yield from found
        if len(found) < at_once:
            return
        at = (found[-1].created_at, found[-1].id)


def follow_traces(
    store: Store, wanted: TraceFilter | None = None, *, wait: Callable[[], bool], last: int = 10
) -> Iterator[Trace]:
    """The last traces and then each new one as it is written. ``wait`` is called when there is nothing new; it returns False to end.

    SQLite says for next to nothing that somebody wrote (``data_version``), and rows are found in the order of writing. On PostgreSQL the
    newest quarter of an hour is looked through for what was not there before: a request that took longer is not shown.
    """
    wanted = wanted or TraceFilter()
    shown = query_traces(store, wanted, limit=last)[::-1]
    yield from shown
    if store.engine.dialect.name == "sqlite":
        yield from _follow_rows(store, wanted, wait)
        return
    seen: OrderedDict[str, None] = OrderedDict.fromkeys(trace.id for trace in shown)
    while wait():
        recent = and_(where_of(wanted), traces.c.created_at >= moment("15m"))
        with store.read() as connection:
            found = read_traces(connection, select(traces).where(recent).order_by(traces.c.created_at, traces.c.id))
        for trace in found:
            if trace.id not in seen:
                seen[trace.id] = None
                yield trace
        while len(seen) > 100_000:
            seen.popitem(last=False)


def _follow_rows(store: Store, wanted: TraceFilter, wait: Callable[[], bool]) -> Iterator[Trace]:
    row_id: ColumnElement[int] = literal_column("traces.rowid")
    with store.read() as connection:
        newest = int(connection.execute(select(func.coalesce(func.max(row_id), 0)).select_from(traces)).scalar_one())
        version = connection.execute(text("PRAGMA data_version")).scalar_one()
        connection.rollback()
        while wait():
            now = connection.execute(text("PRAGMA data_version")).scalar_one()
            if now == version:
                connection.rollback()
                continue
            version = now
            top = int(connection.execute(select(func.coalesce(func.max(row_id), 0)).select_from(traces)).scalar_one())
            query = select(traces).where(row_id > newest, row_id <= top, where_of(wanted)).order_by(row_id)
            found = read_traces(connection, query)
            connection.rollback()
            newest = top
            yield from found


@dataclass(frozen=True)
class Measured:
    """The columns of a trace that figures are made of."""

    created_at: str
    model: str
    operation: str
    route: str
    cache: str
    first_token_s: float | None
    latency_s: float
    prompt_tokens: int
    completion_tokens: int
    cost: float
    finish_reason: str
    failed: bool


_FAILED = case((traces.c.error != "", True), else_=False).label("failed")


def measure_traces(store: Store, wanted: TraceFilter) -> list[Measured]:
    """The figures of all traces that ``wanted`` fits, oldest first, without their texts."""
    names = [field.name for field in fields(Measured) if field.name != "failed"]
    query = select(*(traces.c[name] for name in names), _FAILED).where(where_of(wanted))
    with store.read() as connection:
        rows = connection.execute(query.order_by(traces.c.created_at, traces.c.id)).mappings().all()
    return [Measured(**row) for row in rows]


def _guardrail(name: str) -> ColumnElement[bool]:
    said = cast(traces.c.details["guardrails"], Text)
    if name == ANY:
        return and_(said.is_not(None), said != "null", said != "")
    return said.contains(json.dumps(name, ensure_ascii=False), autoescape=True)


def _holds(wanted: str) -> ColumnElement[bool]:
    """Whether a message or the answer holds a text; upper and lower case of ASCII letters are the same."""
    written = json.dumps(wanted, ensure_ascii=False)[1:-1]  # as it stands in a JSON column
    return or_(
        traces.c.answer.icontains(wanted, autoescape=True),
        cast(traces.c.messages, Text).icontains(written, autoescape=True),
    )


def _said(wanted: FeedbackFilter) -> ColumnElement[bool]:
    of_trace = or_(feedback.c.trace_id == traces.c.id, feedback.c.over == traces.c.id)
    explicit = exists().where(of_trace, feedback.c.kind == "explicit")
    if wanted == "none":
        return not_(explicit)
    if wanted == "implicit":
        return exists().where(feedback.c.trace_id == traces.c.id, feedback.c.kind == "implicit")
    own = exists().where(feedback.c.trace_id == traces.c.id, feedback.c.kind == "explicit")
    beaten = exists().where(feedback.c.over == traces.c.id, feedback.c.kind == "explicit")
    conditions: dict[str, ColumnElement[bool]] = {
        "any": explicit,
        "good": own.where(or_(feedback.c.rating == 1, feedback.c.over != "")),
        "bad": or_(own.where(feedback.c.rating == -1), beaten),
        "corrected": own.where(or_(feedback.c.corrected.is_not(None), feedback.c.label.is_not(None))),
    }
    return conditions[wanted]


def known_values(store: Store, column: str) -> Sequence[str]:
    """What stands in a column of the table (``model``, ``route``), sorted: to say what a filter could have been."""
    with store.read() as connection:
        return sorted(str(each) for each in connection.execute(select(traces.c[column]).distinct()).scalars() if each)
