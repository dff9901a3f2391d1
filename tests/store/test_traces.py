import pytest

from luthier.core.errors import NotFoundError
from luthier.core.trace import Trace
from luthier.store.home import new_id
from luthier.store.traces import find_trace, list_traces, record_trace, record_traces


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


def test_a_trace_is_found_by_its_own_tenant_only(store):
    record_trace(store, one := trace(tenant="acme"))
    assert find_trace(store, one.id, tenant="acme") == one
    with pytest.raises(NotFoundError, match="not known"):
        find_trace(store, one.id, tenant="other")


def test_what_json_cannot_hold_becomes_null_or_is_refused(store):
    odd = trace(parameters={"x": float("nan"), 3: 2**70}, details={"a": [{"b": (1, 2)}]})
    record_trace(store, odd)
    found = find_trace(store, odd.id)
    assert (found.parameters, found.details) == ({"x": None, "3": 2**70}, {"a": [{"b": [1, 2]}]})
    with pytest.raises(UnicodeEncodeError):
        record_trace(store, trace(details={"a": "\ud800"}))
