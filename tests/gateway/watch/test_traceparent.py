from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from luthier.gateway.watch.traceparent import Parent, parse_traceparent
from luthier.store.traces import list_traces

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_valid_header() -> None:
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-01") == Parent(int(TRACE, 16), int(SPAN, 16), True)
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-00") == Parent(int(TRACE, 16), int(SPAN, 16), False)
    assert parse_traceparent(f"cc-{TRACE}-{SPAN}-01-what-is-to-come") == Parent(int(TRACE, 16), int(SPAN, 16), True)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{SPAN}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
    ],
)
def test_what_is_not_valid_is_ignored(header: str) -> None:
    assert parse_traceparent(header) is None


def test_the_trace_keeps_the_callers_trace_and_nobody_elses(
    start: Callable[..., Any], make_fake: Callable[..., Any]
) -> None:
    server = start({"fake": make_fake("fake")})
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    with httpx.Client() as client:  # one connection: the second request must not inherit the first one's
        for headers in ({"traceparent": f"00-{TRACE}-{SPAN}-01"}, {}, {"traceparent": "nonsense"}):
            answer = client.post(f"{server.base_url}/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200
        client.get(f"{server.base_url}/traces/none")
    third, second, first = list_traces(server.store)
    assert first.details["otel"] == [{"trace_id": TRACE, "parent_id": SPAN}]
    assert "otel" not in second.details
    assert "otel" not in third.details
