"""What people said of answers, and what they did with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import insert, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from luthier.core.errors import InputError, NotFoundError, did_you_mean
from luthier.core.trace import EVENTS, Feedback, FeedbackKind, Trace
from luthier.store.database import Store, feedback, traces
from luthier.store.home import new_id, now
from luthier.store.traces import find_trace, read_trace

_NAMES = tuple(field.name for field in fields(Feedback))


def record_feedback(
    store: Store,
    trace_id: str,
    rating: int | None = None,
    label: str | None = None,
    corrected: str | None = None,
    comment: str = "",
    *,
    over: str = "",
    event: str = "",
    **origin: str,
) -> Feedback:
    """Write what somebody said of an answer: at least one of rating (-1 or 1), label, corrected, comment, and ``over`` (the trace whose
    answer to the same question was worse). Or what was done with it: an ``event``, alone.

    ``origin`` are source, tenant (left out, the trace's), key_id, said_by. Raises NotFoundError for an unknown trace, InputError for an
    empty or impossible statement.
    """
    if rating not in (None, -1, 1) or isinstance(rating, bool):
        raise InputError(f"rating must be -1 or 1; got {rating!r}")
    said = rating is not None or label is not None or corrected is not None or bool(comment) or bool(over)
    if not said and not event:
        raise InputError("feedback needs at least one of rating, label, corrected, comment, over, event; got none")
    if event and event not in EVENTS:
        raise InputError(f"event must be one of {', '.join(EVENTS)}; got {event!r}. {did_you_mean(event, EVENTS)}")
    if event and said:
        raise InputError("event says what was done, and stands alone: send what was said as feedback of its own")
    trace = find_trace(store, trace_id)
    if over:
        _check_pair(trace, find_trace(store, over))
    origin.setdefault("tenant", trace.tenant)
    kind: FeedbackKind = "implicit" if event else "explicit"
    given = Feedback(
        new_id("fb"), trace_id, now(), rating, label, corrected, comment, kind=kind, event=event, over=over, **origin
    )
    with store.write() as connection:
        connection.execute(insert(feedback).values(**_row(given)))
    return given


def record_inferred(store: Store, many: Sequence[Feedback]) -> int:
    """Write what was found in traces; what is there already (by id) is left as it is. Returns how many were new."""
    rows = [_row(each) for each in many]
    new = 0
    for start in range(0, len(rows), 200):
        with store.write() as connection:
            dialect = {"sqlite": sqlite, "postgresql": postgresql}[connection.dialect.name]
            statement = dialect.insert(feedback).on_conflict_do_nothing(index_elements=["id"]).returning(feedback.c.id)
            new += len(connection.execute(statement, rows[start : start + 200]).all())
    return new


def find_feedback(store: Store, feedback_id: str) -> Feedback:
    """A statement by its id. Raises NotFoundError."""
    with store.read() as connection:
        row = connection.execute(select(feedback).where(feedback.c.id == feedback_id)).mappings().first()
    if row is None:
        raise NotFoundError(f"feedback {feedback_id!r} is not known", hint="luthier traces show TRACE")
    return Feedback(**{name: row[name] for name in _NAMES})


def feedback_on(store: Store, trace_id: str) -> list[Feedback]:
    """What was said of one trace, or of it beside another, oldest first."""
    query = select(feedback).where(or_(feedback.c.trace_id == trace_id, feedback.c.over == trace_id))
    with store.read() as connection:
        rows = connection.execute(query.order_by(feedback.c.created_at, feedback.c.id)).mappings().all()
    return [Feedback(**{name: row[name] for name in _NAMES}) for row in rows]


def list_feedback(
    store: Store, model: str | None = None, *, kinds: Sequence[FeedbackKind] = ("explicit",), tenant: str | None = None
) -> list[tuple[Trace, Feedback]]:
    """Every statement of these kinds with its trace, oldest first."""
    said = [column.label(f"said_{column.name}") for column in feedback.c]
    query = select(traces, *said).join(feedback, feedback.c.trace_id == traces.c.id)
    query = query.where(feedback.c.kind.in_(list(kinds))).order_by(feedback.c.created_at, feedback.c.id)
    for column, wanted in ((traces.c.model, model), (traces.c.tenant, tenant)):
        query = query if wanted is None else query.where(column == wanted)
    with store.read() as connection:
        rows = connection.execute(query).mappings().all()
    return [(read_trace(row), Feedback(**{name: row[f"said_{name}"] for name in _NAMES})) for row in rows]


def _check_pair(better: Trace, worse: Trace) -> None:
    if better.id == worse.id:
        raise InputError("over must name another trace than the one that is better; got the same")
    if [dict(m) for m in better.messages] != [dict(m) for m in worse.messages] or not better.messages:
        raise InputError(
            f"over must name an answer to the same question: the messages of {better.id} and {worse.id} differ"
        )


def _row(given: Feedback) -> dict[str, Any]:
    return {name: getattr(given, name) for name in _NAMES}
