from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.trace import Trace
from luthier.data import implicit
from luthier.data.implicit import alike, found_in, infer_feedback
from luthier.store.database import open_store
from luthier.store.feedback import list_feedback, record_feedback
from luthier.store.trace_query import TraceFilter
from luthier.store.traces import record_traces


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def trace(number: int, *messages: dict[str, Any], second: int | None = None, **changes: Any) -> Trace:
    at = number * 30 if second is None else second
    given = {"answer": f"answer {number}", "session": "s", "latency_s": 1.0} | changes
    stamp = f"2026-01-01T{at // 3600:02d}:{at % 3600 // 60:02d}:{at % 60:02d}.000Z"
    return Trace(f"t{number}", stamp, "m", "chat", messages, **given)


def events(*traces: Trace) -> list[tuple[str, str, str]]:
    return [(given.trace_id, given.event, given.over) for given in found_in(traces)]


Q = user("where is my parcel, please")


def test_asked_again() -> None:
    assert events(trace(1, Q), trace(2, Q), trace(3, user(" Where is  my parcel, please"))) == [
        ("t1", "regenerated", ""),
        ("t2", "regenerated", ""),
    ]


@pytest.mark.parametrize(
    "second",
    [
        trace(2, Q, session="other"),
        trace(2, Q, tenant="other"),
        trace(2, Q, key_id="other"),
        trace(2, Q, second=30 + 2000),
        trace(2, user("something else entirely")),
        trace(2, user("system"), Q),
    ],
)
def test_not_asked_again(second: Trace) -> None:
    assert events(trace(1, Q), second) == []


def test_a_failure_is_tried_again_and_choices_of_one_request_are_no_second_one() -> None:
    assert events(trace(1, Q, error="down", answer=""), trace(2, Q)) == []
    choices = [Trace(name, "2026-01-01T00:00:00.000Z", "m", "chat", (Q,), name, session="s") for name in ("t1", "t1.1")]
    assert events(*choices) == []


def test_a_user_is_a_session_too_and_nobody_is_none() -> None:
    named = [trace(n, Q, session="", parameters={"user": "ann"}) for n in (1, 2)]
    assert [given.said_by for given in found_in(named)] == ["ann"]
    assert events(*(trace(n, Q, session="") for n in (1, 2))) == []


def test_the_answer_that_the_session_goes_on_with() -> None:
    onward = trace(4, Q, assistant("answer 2"), user("thank you, and what does it cost"))
    assert events(trace(1, Q), trace(2, Q), trace(3, Q), onward)[2:] == [
        ("t2", "preferred", "t1"),
        ("t2", "preferred", "t3"),
    ]
    elsewhere = trace(4, Q, assistant("an answer of another service"), user("thank you"))
    assert events(trace(1, Q), trace(2, Q), elsewhere)[1:] == []


def test_put_otherwise() -> None:
    follow = trace(2, Q, assistant("answer 1"), user("I mean where my parcel is now, please tell me"))
    assert events(trace(1, Q), follow) == [("t1", "rephrased", "")]
    edited = trace(2, user("please say where my parcel is right now"))
    assert events(trace(1, Q), edited) == [("t1", "rephrased", "")]
    late = trace(2, user("please say where my parcel is right now"), second=30 + 400)
    assert events(trace(1, Q), late) == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("where is my parcl", "where is my parcel", True),
        ("how do I return a cello", "how can I return the cello I bought", True),
        ("我的包裹现在在哪里呢", "请问我的包裹在哪里", True),
        ("what is the capital of France?", "what is the capital of Spain?", False),
        ("what is the capital of france?", "what is the capital of spain?", False),
        ("is order 15 there yet", "is order 16 there yet", False),
        ("法国的首都是哪一座城市", "德国的首都是哪一座城市", False),
        ("where is my parcel", "where is my parcel", False),
        ("yes", "yes!", False),
        ("how do I return a cello", "what does a bow cost today", False),
    ],
)
def test_nearly_the_same(one: str, other: str, same: bool) -> None:
    assert alike(one, other) is same
    assert alike(other, one) is same


def test_left_in_the_middle() -> None:
    gone = {"error": [{"kind": "client_gone", "status": 499}]}
    left = trace(1, Q, error="the client closed its connection", details=gone, session="")
    assert events(left) == [("t1", "stopped", "")]
    assert events(trace(1, Q, error="x", answer="", details=gone)) == []  # nothing was shown yet
    assert events(trace(1, Q, error="x", details={"error": [{"kind": "engine_error"}]})) == []


def test_it_is_recorded_once_and_apart(home: Path) -> None:
    store = open_store(home)
    record_traces(store, [trace(1, Q), trace(2, Q), trace(3, Q, tenant="acme")])
    said = record_feedback(store, "t1", rating=1)
    assert infer_feedback(store, TraceFilter(tenant="acme")) == {}
    assert infer_feedback(store) == {"regenerated": 1}
    assert infer_feedback(store) == {"regenerated": 0}
    ((_, given),) = list_feedback(store, kinds=("implicit",))
    assert (given.kind, given.source, given.verdict, given.rating) == ("implicit", "inferred", -1, None)
    assert [each for _, each in list_feedback(store)] == [said]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implicit, "_SESSIONS", 2)
    many = [trace(n, Q, session=f"s{n}") for n in range(5)]
    again = [trace(9, Q, session="s0"), trace(10, Q, session="s4")]
    assert events(*many, *again) == [("t4", "regenerated", "")], "the oldest session is forgotten"
