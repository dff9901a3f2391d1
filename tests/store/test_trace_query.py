from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest

from luthier.core.errors import InputError, NotFoundError
from luthier.core.trace import Trace
from luthier.store.feedback import record_feedback
from luthier.store.trace_query import (
    TraceFilter,
    follow_traces,
    iterate_traces,
    known_values,
    measure_traces,
    moment,
    query_traces,
)
from luthier.store.traces import record_trace, record_traces


def trace(number, **changes):
    asked = ({"role": "user", "content": f'question {number} 请 "quoted"'},)
    given = {"model": "support", "operation": "chat", "messages": asked, "answer": f"answer {number}"} | changes
    return Trace(f"t{number:04d}", f"2026-01-01T00:00:{number:02d}.000Z", **given)


@pytest.fixture
def filled(store):
    many = [
        trace(0, model="a", route="r", tenant="acme", session="s", key_id="k", parameters={"user": "ann"}),
        trace(1, error="down", latency_s=2.0, details={"error": [{"kind": "engine_error"}]}),
        trace(2, answer="Straße 100%_", finish_reason="length", cache="exact"),
        trace(3, details={"guardrails": [{"name": "pii", "action": "mask"}]}, cache="semantic"),
        trace(4, operation="completion"),
    ]
    record_traces(store, many)
    record_feedback(store, "t0002", rating=1)
    record_feedback(store, "t0003", rating=-1, corrected="better")
    record_feedback(store, "t0004", event="copied")
    return store


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, [4, 3, 2, 1, 0]),
        ({"model": "a"}, [0]),
        ({"route": "r", "tenant": "acme", "session": "s", "key": "k", "user": "ann"}, [0]),
        ({"tenant": "other"}, []),
        ({"user": "bob"}, []),
        ({"operation": "completion"}, [4]),
        ({"since": "2026-01-01T00:00:03Z"}, [4, 3]),
        ({"until": "2026-01-01T00:00:01"}, [0]),
        ({"since": "2026-01-01T09:00:02+09:00", "until": "2026-01-01T00:00:04Z"}, [3, 2]),
        ({"since": "1h"}, []),
        ({"errors": True}, [1]),
        ({"min_latency_s": 1.5}, [1]),
        ({"text": "QUESTION 3"}, [3]),
        ({"text": '请 "quoted"'}, [4, 3, 2, 1, 0]),
        ({"text": "100%_"}, [2]),
        ({"text": "1__%"}, []),
        ({"feedback": "any"}, [3, 2]),
        ({"feedback": "none"}, [4, 1, 0]),
        ({"feedback": "good"}, [2]),
        ({"feedback": "bad"}, [3]),
        ({"feedback": "corrected"}, [3]),
        ({"feedback": "implicit"}, [4]),
        ({"finish_reason": "length"}, [2]),
        ({"guardrail": "any"}, [3]),
        ({"guardrail": "pii"}, [3]),
        ({"guardrail": "toxicity"}, []),
        ({"cache": "any"}, [3, 2]),
        ({"cache": "exact"}, [2]),
    ],
)
def test_filters(filled, wanted, found):
    assert [t.id for t in query_traces(filled, TraceFilter(**wanted))] == [f"t{n:04d}" for n in found]
    assert [t.id for t in iterate_traces(filled, TraceFilter(**wanted), at_once=2)] == [
        f"t{n:04d}" for n in found[::-1]
    ]
    assert len(measure_traces(filled, TraceFilter(**wanted))) == len(found)


def test_the_better_of_two_is_good_and_the_other_bad(store):
    asked = ({"role": "user", "content": "q"},)
    record_traces(store, [trace(1, messages=asked), trace(2, messages=asked)])
    record_feedback(store, "t0001", over="t0002")
    assert [t.id for t in query_traces(store, TraceFilter(feedback="good"))] == ["t0001"]
    assert [t.id for t in query_traces(store, TraceFilter(feedback="bad"))] == ["t0002"]
    assert query_traces(store, TraceFilter(feedback="none")) == []


def test_pages_follow_one_another(filled):
    first = query_traces(filled, limit=2)
    second = query_traces(filled, limit=2, after=first[-1].id)
    assert [t.id for t in first + second] == ["t0004", "t0003", "t0002", "t0001"]
    with pytest.raises(NotFoundError, match="t9"):
        query_traces(filled, after="t9")
    with pytest.raises(NotFoundError):  # another tenant's id is no place to begin
        query_traces(filled, TraceFilter(tenant="acme"), after="t0004")


def test_a_time_that_is_none_is_refused_with_its_name():
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    assert moment("90m", now=noon) == "2026-01-02T10:30:00.000Z"
    assert moment("1.5d", now=noon) == "2026-01-01T00:00:00.000Z"
    assert moment("2026-01-02") == "2026-01-02T00:00:00.000Z"
    for wrong in ("yesterday", "99999999999w", "2026-13-01", ""):
        with pytest.raises(InputError, match="until must be a time ago"):
            TraceFilter(until=wrong)
    with pytest.raises(InputError, match="feedback must be one of any, none"):
        TraceFilter(feedback="meh")


def test_figures_without_texts(filled):
    failed = measure_traces(filled, TraceFilter(errors=True))
    assert [(m.model, m.latency_s, m.failed) for m in failed] == [("support", 2.0, True)]
    assert known_values(filled, "model") == ["a", "support"]


def test_following_shows_the_last_and_then_each_new_one_in_the_order_of_writing(filled):
    """New traces are seen whoever writes them; an early request that ends late is not missed."""
    writes = [
        lambda: None,
        lambda: record_trace(filled, trace(9, model="a")),
        lambda: record_traces(filled, [trace(5, model="a"), trace(6)]),  # began before what is shown already
    ]

    def wait():
        if not writes:
            return False
        writes.pop(0)()
        return True

    shown = [t.id for t in follow_traces(filled, TraceFilter(model="a"), wait=wait, last=3)]
    assert shown == ["t0000", "t0009", "t0005"]


def test_following_sees_what_another_process_writes(store):
    code = (
        "from luthier.store.database import open_store; from luthier.store.traces import record_trace;"
        "from luthier.core.trace import Trace; record_trace(open_store(), Trace('other', '2026', 'm', 'chat'))"
    )
    written = []

    def wait():
        if written:
            return False
        written.append(subprocess.run([sys.executable, "-c", code], check=True, timeout=60))
        return True

    assert [t.id for t in follow_traces(store, wait=wait)] == ["other"]
