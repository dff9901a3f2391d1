from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from luthier.core.errors import InputError
from luthier.core.trace import Trace
from luthier.gateway.access.keys import Keys
from luthier.gateway.config import read_config
from luthier.gateway.service import Service
from luthier.gateway.watch.watch import WatchConfig
from luthier.store.database import open_store
from luthier.store.traces import list_traces, record_traces

MAIL = "ann.lee@example.com"
BODY = {"model": "fake", "messages": [{"role": "user", "content": f"write to {MAIL}"}]}


@pytest.mark.parametrize(
    ("watch", "named"),
    [
        ({"redact": "some"}, "watch.redact"),
        ({"redact": ["("]}, "watch.redact"),
        ({"redact": []}, "watch.redact"),
        ({"otlp": {"endpoint": "collector:4318"}}, "watch.otlp.endpoint"),
        ({"otlp": {"endpoint": "http://x", "sample": 2}}, "watch.otlp.sample"),
        ({"slo": {"target": 0.9}}, "watch.slo"),
        ({"slo": {"ttft_s": 1, "target": 1.0}}, "watch.slo.target"),
        ({"retain": {}}, "watch.retain"),
        ({"retain": {"days": 0}}, "watch.retain.days"),
        ({"retian": {"days": 1}}, "watch.retian"),
    ],
)
def test_a_mistake_is_named(watch: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named.replace(".", r"\.")):
        read_config({"watch": watch})


def test_headers_that_are_not_there_stop_the_server_before_it_starts(start: Callable[..., Any], make_fake: Any) -> None:
    otlp = {"endpoint": "http://localhost:4318", "headers_env": "NO_SUCH_VARIABLE"}
    with pytest.raises(InputError, match="NO_SUCH_VARIABLE"):
        start({"fake": make_fake("fake")}, config={"watch": {"otlp": otlp}})


@pytest.mark.parametrize(
    ("watch", "content"),
    [
        ({}, f"write to {MAIL}"),
        ({"redact": "pii"}, "write to [EMAIL]"),
        ({"redact": ["[a-z.]+@"]}, "write to [REDACTED]example.com"),
        ({"redact": "all"}, "[REDACTED: 28 characters]"),
    ],
)
def test_traces_are_kept_as_the_configuration_says(
    start: Callable[..., Any], make_fake: Any, watch: dict[str, Any], content: str
) -> None:
    server = start({"fake": make_fake("fake")}, config={"watch": watch})
    answer = httpx.post(f"{server.base_url}/chat/completions", json=BODY)
    assert answer.status_code == 200
    seen = httpx.get(f"{server.base_url}/traces/{answer.json()['id']}").json()
    assert seen["messages"][0]["content"] == content


def test_no_content(start: Callable[..., Any], make_fake: Any) -> None:
    server = start({"fake": make_fake("fake")}, config={"watch": {"keep_content": False}})
    answer = httpx.post(f"{server.base_url}/chat/completions", json=BODY).json()
    seen = httpx.get(f"{server.base_url}/traces/{answer['id']}").json()
    assert (seen["messages"], seen["answer"]) == ([], "")
    assert seen["completion_tokens"] == answer["usage"]["completion_tokens"]


def test_old_traces_go_while_it_serves(start: Callable[..., Any], make_fake: Any, tmp_path: Path) -> None:
    store = open_store(tmp_path / "kept")
    record_traces(store, [Trace(f"t{n}", "2020-01-01T00:00:00.000Z", "m", "chat") for n in range(3)])
    start({"fake": make_fake("fake")}, store=store, config={"watch": {"retain": {"days": 30}}})
    for _ in range(10_000):  # it begins at once, in a thread of its own
        if not list_traces(store):
            break
    assert list_traces(store) == []


def test_a_new_configuration_keeps_what_was_counted(tmp_path: Path) -> None:
    service = Service.open({}, open_store(tmp_path), Keys(), max_concurrent=1, max_queue=1)
    first = service.watch.metrics
    service.watch.configure(WatchConfig(redact="pii"))
    assert service.watch.metrics is first
    assert service.watch.redacted(f"to {MAIL}") == "to [EMAIL]"
    service.watch.configure(WatchConfig(metrics=False))
    assert service.watch.metrics is None
    service.close()
