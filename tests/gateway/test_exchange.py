from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from luthier.core.engine import Generation
from luthier.core.errors import EngineError, LuthierError
from luthier.core.message import ToolCall
from luthier.gateway.access.caller import Caller
from luthier.gateway.api.wire import RequestError
from luthier.gateway.calls import Piece
from luthier.gateway.exchange import GONE, Exchange
from luthier.gateway.service import Price, Served
from luthier.store.traces import list_traces

DONE = Generation("ab", (1, 2), (3,), "stop", prompt_tokens=10, completion_tokens=2, cached_tokens=4)


def exchange(**changes: Any) -> Exchange:
    return Exchange(**{"operation": "chat", "model": "m", "caller": Caller("acme", "key-1")} | changes)


def test_usage_counts_the_prompt_of_several_choices_once() -> None:
    asked = exchange(n=2)
    for index in range(4):
        asked.note(Piece(index, "ab", DONE))
    assert asked.usage == (20, 8, 8), "two prompts, four answers"


def test_cost_is_that_of_the_target_and_nothing_out_of_a_cache(scripted: Any) -> None:
    asked = exchange(served=Served("m", scripted(), price=Price(1e6, 2e6)))
    asked.note(Piece(0, "ab", DONE))
    assert asked.cost == 10 + 2 * 2
    assert [trace.cost for trace in asked.traces()] == [14]
    cached = exchange(served=asked.served, cache="exact")
    cached.note(Piece(0, "ab", DONE))
    assert cached.cost == 0
    assert [trace.cost for trace in cached.traces()] == [0]


def test_a_trace_says_whose_and_how(scripted: Any) -> None:
    asked = exchange(
        served=Served("target", scripted()), route="r", session="s", messages=(({"role": "user", "content": "q"},),)
    )
    asked.say("route", target="target", outcome="ok")
    asked.note(Piece(0, "ab"))
    asked.note(Piece(0, "", replace(DONE, finish_reason="tool_calls", tool_calls=(ToolCall("f", "{}", "call_1"),))))
    asked.finish()
    (trace,) = asked.traces()
    assert (trace.tenant, trace.key_id, trace.session, trace.route, trace.model) == (
        "acme",
        "key-1",
        "s",
        "r",
        "target",
    )
    assert trace.details["route"][0].pop("at_s") >= 0
    assert trace.details == {
        "route": [{"target": "target", "outcome": "ok"}],
        "tool_calls": [{"id": "call_1", "name": "f", "arguments": "{}"}],
    }
    assert (trace.answer, trace.finish_reason, trace.error) == ("ab", "tool_calls", "")


def test_a_request_that_failed_before_any_answer_has_a_trace_with_the_error() -> None:
    asked = exchange()
    asked.finish("no such model")
    (trace,) = asked.traces()
    assert (trace.model, trace.error, trace.finish_reason, trace.answer) == ("m", "no such model", "", "")


def test_finishers_are_called_once_and_do_not_cost_each_other_their_call(caplog: pytest.LogCaptureFixture) -> None:
    asked, seen = exchange(), []
    asked.finishers += [lambda e: seen.append(e.error), lambda e: 1 / 0, lambda e: seen.append("after")]
    asked.finish("first")
    asked.finish("second")
    assert seen == ["first", "after"]
    assert asked.error == "first"
    assert "could not be finished" in caplog.text


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (RequestError("full", status=429, code="queue_full"), "queue_full", 429),
        (EngineError("down"), "engine_error", 502),
        (GONE, "client_gone", 499),
        ("something", "internal_error", 500),
    ],
)
def test_a_failure_says_of_what_kind_it_is(error: str | LuthierError, kind: str, status: int) -> None:
    failed = exchange()
    failed.finish(error)
    failed.finish()  # only the first counts
    assert (failed.fault, failed.status) == (kind, status)
    (trace,) = failed.traces()
    assert trace.error == str(error)
    assert [(said["kind"], said["status"]) for said in trace.details["error"]] == [(kind, status)]


def test_what_a_layer_says_has_its_time() -> None:
    one = exchange()
    one.say("cache", hit=False)
    one.say("cache", hit=True, at_s=7.0)
    first, second = one.details["cache"]
    assert first["hit"] is False
    assert 0 <= first["at_s"] < 5
    assert second == {"hit": True, "at_s": 7.0}


def test_attempts_are_in_the_trace(start: Callable[..., Any], scripted: type) -> None:
    def broken(number: int) -> None:
        raise EngineError("the engine is down")

    server = start({"good": scripted(), "bad": scripted(before=broken, name="bad")})
    ask = {"messages": [{"role": "user", "content": "hi"}]}
    assert httpx.post(f"{server.base_url}/chat/completions", json={"model": "good", **ask}).status_code == 200
    assert httpx.post(f"{server.base_url}/chat/completions", json={"model": "bad", **ask}).status_code == 502
    httpx.get(f"{server.base_url}/traces/none")  # what waits is written before it says no
    bad, good = list_traces(server.store)
    (attempt,) = good.details["attempts"]
    assert (attempt["model"], attempt["error"]) == ("good", "")
    assert 0 <= attempt["waited_s"] <= attempt["first_s"] <= attempt["took_s"]
    assert attempt["took_s"] <= attempt["at_s"] <= good.latency_s + 5
    assert bad.details["attempts"][0]["error"] == "the engine is down"
    assert bad.details["error"][0]["kind"] == "engine_error"
