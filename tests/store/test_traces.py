import pytest

from luthier.core.errors import InputError, NotFoundError
from luthier.core.trace import Trace
from luthier.store.home import new_id
from luthier.store.traces import (
    find_trace,
    list_feedback,
    list_traces,
    record_feedback,
    record_trace,
    record_traces,
)


def trace(number=0, model="support", **changes):
    asked = ({"role": "user", "content": f"question {number} 请"},)
    return Trace(
        new_id("trace"), f"2026-01-01T00:00:{number:02d}.000Z", model, "chat", asked, f"answer {number}", **changes
    )


def test_a_trace_comes_back_as_it_went_in(store):
    one = trace(
        parameters={"temperature": 0.5}, model_digest="m", latency_s=0.25, first_token_s=0.1, prompt_tokens=7, cost=0.01
    )
    record_trace(store, one)
    assert find_trace(store, one.id) == one
    with pytest.raises(NotFoundError, match="trace_x"):
        find_trace(store, "trace_x")


def test_traces_are_listed_newest_first_by_model(store):
    many = [trace(n, model="ab"[n % 2]) for n in range(6)]
    record_traces(store, many)
    record_traces(store, [])
    assert list_traces(store) == many[::-1]
    assert list_traces(store, model="a", limit=2) == [many[4], many[2]]


def test_many_traces_are_one_transaction(store):
    one = trace()
    with pytest.raises(Exception, match="UNIQUE"):
        record_traces(store, [trace(1), one, one])
    assert list_traces(store) == []


def test_feedback_belongs_to_a_trace_and_keeps_what_was_said(store):
    one, two = trace(1), trace(2, model="other")
    record_traces(store, [one, two])
    first = record_feedback(store, one.id, rating=-1, label="refund", corrected="Better.", comment="wrong class")
    second = record_feedback(store, two.id, rating=1)
    assert list_feedback(store) == [(one, first), (two, second)]
    assert list_feedback(store, "other") == [(two, second)]
    assert (first.rating, first.label, first.corrected, first.comment) == (-1, "refund", "Better.", "wrong class")


@pytest.mark.parametrize("rating", [0, 2, True, "1"])
def test_an_impossible_rating_is_refused(store, rating):
    record_trace(store, one := trace())
    with pytest.raises(InputError, match="rating must be -1 or 1"):
        record_feedback(store, one.id, rating=rating)


def test_empty_feedback_and_feedback_on_nothing_are_refused(store):
    record_trace(store, one := trace())
    with pytest.raises(InputError, match="at least one of"):
        record_feedback(store, one.id)
    with pytest.raises(NotFoundError):
        record_feedback(store, "trace_none", rating=1)
    assert list_feedback(store) == []
