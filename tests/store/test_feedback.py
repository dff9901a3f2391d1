from dataclasses import replace

import pytest

from luthier.core.errors import InputError, NotFoundError
from luthier.core.trace import Feedback, Trace
from luthier.store.feedback import (
    feedback_on,
    find_feedback,
    list_feedback,
    record_feedback,
    record_inferred,
)
from luthier.store.home import new_id
from luthier.store.traces import find_traces, record_trace, record_traces


def trace(number=0, model="support", **changes):
    asked = ({"role": "user", "content": f"question {number} 请"},)
    return Trace(
        new_id("trace"), f"2026-01-01T00:00:{number:02d}.000Z", model, "chat", asked, f"answer {number}", **changes
    )


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


def test_an_event_stands_alone_and_is_never_listed_with_what_was_said(store):
    record_trace(store, one := trace())
    done = record_feedback(store, one.id, event="copied", source="client", said_by="ann")
    assert (done.kind, done.event, done.verdict, done.tenant) == ("implicit", "copied", 1, "local")
    assert list_feedback(store) == []
    assert list_feedback(store, kinds=("implicit",)) == [(one, done)]
    with pytest.raises(InputError, match=r"event must be one of copied, .*'copid'.*Did you mean 'copied'"):
        record_feedback(store, one.id, event="copid")
    with pytest.raises(InputError, match="stands alone"):
        record_feedback(store, one.id, event="copied", rating=1)


def test_the_better_of_two_answers_to_one_question(store):
    one, two = trace(), trace()
    other = trace(3)
    record_traces(store, [one, two, other])
    said = record_feedback(store, one.id, over=two.id)
    assert (said.over, said.kind, said.verdict) == (two.id, "explicit", 1)
    assert feedback_on(store, one.id) == feedback_on(store, two.id) == [said]
    assert find_feedback(store, said.id) == said
    for wrong, match in ((one.id, "another trace"), (other.id, "same question"), ("trace_none", "not known")):
        with pytest.raises(InputError, match=match):
            record_feedback(store, one.id, over=wrong)
    assert sorted(find_traces(store, [one.id, "trace_none", two.id])) == sorted([one.id, two.id])


def test_inferred_feedback_is_written_once(store):
    record_trace(store, one := trace(tenant="acme"))
    given = [
        Feedback(f"fb_{n}", one.id, "2026", kind="implicit", event="stopped", source="inferred", tenant="acme")
        for n in range(450)
    ]
    assert record_inferred(store, given) == 450
    assert record_inferred(store, [*given, replace(given[0], id="fb_new")]) == 1
