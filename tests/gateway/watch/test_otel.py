from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from luthier.core.engine import Generation
from luthier.core.errors import EngineError, InputError
from luthier.gateway.access.caller import Caller
from luthier.gateway.calls import Piece
from luthier.gateway.exchange import Exchange
from luthier.gateway.service import Served
from luthier.gateway.watch.otel import Spans
from luthier.gateway.watch.redact import Redaction
from luthier.gateway.watch.watch import OtlpConfig
from luthier.store.traces import list_traces

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ASKED = (({"role": "system", "content": "Be brief."}, {"role": "user", "content": "mail ann@example.com"}),)
DONE = Generation("done", (1, 2), (3,), "stop", prompt_tokens=10, completion_tokens=2, cached_tokens=4)


class Receiver(SpanExporter):
    """Takes spans, or refuses, when the test lets it."""

    def __init__(self, result: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        self.result = result
        self.entered = threading.Event()
        self.go = threading.Event()
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Any) -> SpanExportResult:
        self.entered.set()
        assert self.go.wait(20)
        self.spans += spans
        return self.result

    def shutdown(self) -> None:
        self.go.set()


def exchange(served: Served | None = None, **changes: Any) -> Exchange:
    given = {"operation": "chat", "model": "m", "caller": Caller("acme", "key-1"), "messages": ASKED} | changes
    one = Exchange(served=served, **given)
    one.parameters = {"temperature": 0.5, "max_new_tokens": 9, "seed": 7, "stop": ["x"], "stream": True}
    return one


def sent(one: Exchange, **config: Any) -> list[ReadableSpan]:
    memory = InMemorySpanExporter()
    spans = Spans(memory, OtlpConfig(endpoint="http://localhost", **config), Redaction("pii").text)
    spans.put(one)
    spans.close()
    assert spans.state() == {
        "sent": len(memory.get_finished_spans()) and 1,
        "waiting": 0,
        "dropped": 0,
        "failing": False,
    }
    return list(memory.get_finished_spans())


def test_one_span_a_request_in_the_conventions_names(scripted: type) -> None:
    one = exchange(Served("target", scripted()), session="s", route="r")
    one.note(Piece(0, "done", DONE))
    one.finish()
    (span,) = sent(one)
    attributes = dict(span.attributes or {})
    assert (span.name, span.kind, span.status.status_code) == ("chat m", SpanKind.SERVER, StatusCode.UNSET)
    assert attributes.pop("gen_ai.response.time_to_first_chunk") == min(one.first_s.values())
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ["x"],
        "gen_ai.response.id": one.id,
        "gen_ai.response.model": "target",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.conversation.id": "s",
        "http.response.status_code": 200,
        "luthier.trace_id": one.id,
        "luthier.tenant": "acme",
        "luthier.key_id": "key-1",
        "luthier.route": "r",
        "luthier.model_digest": "m" * 64,
    }
    assert span.resource.attributes["service.name"] == "luthier"
    took_s = ((span.end_time or 0) - (span.start_time or 0)) / 1e9
    assert took_s == pytest.approx(one.ended_s, abs=1e-6)


def test_the_names_are_those_of_the_installed_conventions(scripted: type) -> None:
    from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    one = exchange(Served("target", scripted()), session="s", n=2)
    one.parameters |= {"top_p": 0.9, "top_k": 5, "presence_penalty": 1.0, "frequency_penalty": 1.0}
    one.say("attempts", model="target", first_s=0.1, took_s=0.2, waited_s=0.0, error="")
    one.note(Piece(0, "done", DONE))
    one.finish()
    used = {name for span in sent(one, content=True) for name in span.attributes or {} if name.startswith("gen_ai.")}
    assert used <= known
    assert len(used) >= 20


def test_attempts_guardrails_and_the_cache_are_below_it(scripted: type) -> None:
    one = exchange(Served("target", scripted()))
    one.say("guardrails", name="pii", action="mask", took_s=0.25, at_s=0.5, found=["ann@example.com"])
    one.say("cache", result="miss", at_s=0.5)
    one.say("attempts", model="a", began_s=0.5, waited_s=0.1, took_s=0.5, at_s=1.0, error="the engine is down")
    one.say("attempts", model="target", began_s=1.0, waited_s=0.0, first_s=0.1, took_s=1.0, at_s=2.0, error="")
    one.note(Piece(0, "done", DONE))
    one.finish()
    one.ended_s = 2.5
    root, *below = sent(one)
    assert [span.name for span in below] == ["chat a", "chat target", "guardrail pii", "cache"]
    assert all(span.parent is not None and span.parent.span_id == root.context.span_id for span in below)
    assert len({span.context.span_id for span in [root, *below]}) == 5
    begin = root.start_time or 0
    places = [(round((s.start_time - begin) / 1e9, 3), round((s.end_time - begin) / 1e9, 3)) for s in below]  # type: ignore[operator]
    assert places == [(0.5, 1.0), (1.0, 2.0), (0.25, 0.5), (0.5, 0.5)]
    failed, answered, guardrail, _ = below
    assert (failed.kind, failed.status.status_code, (failed.attributes or {})["error.type"]) == (SpanKind.CLIENT, StatusCode.ERROR, "engine_error")  # fmt: skip
    assert answered.status.status_code is StatusCode.UNSET
    assert "gen_ai.usage.output_tokens" not in (answered.attributes or {})
    assert (guardrail.attributes or {})["luthier.guardrail.found"] == '["[EMAIL]"]'


def test_content_goes_along_only_when_said_and_redacted() -> None:
    one = exchange()
    one.note(Piece(0, "wrote to ann@example.com", DONE))
    one.finish()
    (bare,) = sent(one)
    assert not [name for name in bare.attributes or {} if "messages" in name or "instructions" in name]
    (full,) = sent(one, content=True)
    attributes = full.attributes or {}
    assert json.loads(str(attributes["gen_ai.system_instructions"])) == [{"type": "text", "content": "Be brief."}]
    assert json.loads(str(attributes["gen_ai.input.messages"])) == [
        {"role": "user", "parts": [{"type": "text", "content": "mail [EMAIL]"}]}
    ]
    assert json.loads(str(attributes["gen_ai.output.messages"])) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "wrote to [EMAIL]"}], "finish_reason": "stop"}
    ]


def test_failures_of_the_server_are_errors_and_those_of_clients_are_not() -> None:
    one = exchange()
    one.finish(EngineError("ann@example.com broke it"))
    (span,) = sent(one)
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "[EMAIL] broke it")
    assert (span.attributes or {})["error.type"] == "engine_error"
    other = exchange()
    other.finish(InputError("no such field"))
    (span,) = sent(other)
    assert span.status.status_code is StatusCode.UNSET
    assert (span.attributes or {})["http.response.status_code"] == 400


def test_the_callers_trace_goes_on_and_its_decision_holds() -> None:
    one = exchange(traceparent=f"00-{TRACE}-{SPAN}-01")
    one.finish()
    (span,) = sent(one, sample=0.0)
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, SPAN)
    assert span.parent.is_remote
    assert one.details["otel"] == [{"trace_id": TRACE, "parent_id": SPAN}]
    off = exchange(traceparent=f"00-{TRACE}-{SPAN}-00")
    off.finish()
    assert sent(off) == []


def test_a_share_of_the_requests_is_sent() -> None:
    memory = InMemorySpanExporter()
    spans = Spans(memory, OtlpConfig(endpoint="http://localhost", sample=0.25), str)
    for _ in range(2000):
        one = exchange()
        one.finish()
        spans.put(one)
    spans.close()
    assert 350 < len(memory.get_finished_spans()) < 650, "binomial: 500, standard deviation 19"
    assert spans.dropped == 0


def test_what_is_too_much_is_dropped_and_counted_and_nobody_waits() -> None:
    receiver = Receiver()
    spans = Spans(receiver, OtlpConfig(endpoint="http://localhost"), str, capacity=10)
    one = exchange()
    one.finish()
    for _ in range(256):  # a whole batch is sent at once: the thread is now in the exporter
        spans.put(one)
        if receiver.entered.is_set():
            break
    receiver.entered.wait(20)
    for _ in range(25):
        spans.put(one)
    assert spans.dropped >= 15
    before = spans.dropped
    receiver.go.set()
    spans.close()
    assert spans.dropped == before
    spans.put(one)
    assert spans.dropped == before + 1, "it is closed"


def test_a_receiver_that_refuses_costs_spans_not_requests(caplog: pytest.LogCaptureFixture) -> None:
    receiver = Receiver(SpanExportResult.FAILURE)
    receiver.go.set()
    spans = Spans(receiver, OtlpConfig(endpoint="http://collector:4318"), str)
    one = exchange()
    one.finish()
    spans.put(one)
    spans.close()
    assert spans.state() == {"sent": 0, "waiting": 0, "dropped": 1, "failing": True}
    assert "http://collector:4318/v1/traces" in caplog.text


def test_headers_come_from_the_environment_and_are_never_shown() -> None:
    config = OtlpConfig(endpoint="http://x:1/v1/traces", headers_env="OTLP")
    assert config.url == "http://x:1/v1/traces"
    assert config.headers({"OTLP": "authorization=Bearer abc=, x-team = a"}) == {
        "authorization": "Bearer abc=",
        "x-team": "a",
    }
    for environment, match in (
        ({}, "'OTLP', which is not set"),
        ({"OTLP": "secretvalue"}, "must hold name=value pairs"),
    ):
        with pytest.raises(InputError, match=match) as refused:
            config.headers(environment)
        assert "secretvalue" not in str(refused.value)


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[dict[str, str], ExportTraceServiceRequest]], threading.Event]]:
    """An OTLP/HTTP receiver on a free port: its URL, what came, and an event that says that something did."""
    came: list[tuple[dict[str, str], ExportTraceServiceRequest]] = []
    arrived = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            came.append(({k.lower(): v for k, v in self.headers.items()} | {"path": self.path}, ExportTraceServiceRequest.FromString(body)))  # fmt: skip
            self.send_response(200)
            self.end_headers()
            arrived.set()

        def log_message(self, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", came, arrived
    server.shutdown()
    thread.join()
    server.server_close()


def test_over_http_to_a_receiver(
    collector: Any, start: Callable[..., Any], make_fake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, came, arrived = collector
    monkeypatch.setenv("OTLP_HEADERS", "x-team=luthiers")
    otlp = {"endpoint": url, "headers_env": "OTLP_HEADERS", "content": True, "service": "shop"}
    server = start({"fake": make_fake("fake")}, config={"watch": {"otlp": otlp}})
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "user": "ann"}
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    answer = httpx.post(f"{server.base_url}/chat/completions", json=body, headers=headers).json()
    assert arrived.wait(20)
    (received, request), *_ = came
    assert received["path"] == "/v1/traces"
    assert received["x-team"] == "luthiers"
    (resource,) = request.resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "shop"
    spans = [span for scope in resource.scope_spans for span in scope.spans]
    root = next(span for span in spans if span.parent_span_id.hex() == SPAN)
    assert root.trace_id.hex() == TRACE
    attributes = {a.key: a.value for a in root.attributes}
    assert attributes["gen_ai.response.id"].string_value == answer["id"]
    assert attributes["gen_ai.usage.output_tokens"].int_value == answer["usage"]["completion_tokens"]
    assert json.loads(attributes["gen_ai.input.messages"].string_value)[0]["parts"][0]["content"] == "hi"
    assert [s.name for s in spans if s.parent_span_id == root.span_id] == ["chat fake"]
    httpx.get(f"{server.base_url}/traces/none")
    assert list_traces(server.store)[0].details["otel"][0]["trace_id"] == TRACE


def test_a_receiver_that_is_not_there_changes_no_answer(
    start: Callable[..., Any], make_fake: Callable[..., Any]
) -> None:
    otlp = {"endpoint": "http://127.0.0.1:9", "timeout_s": 0.5}
    server = start({"fake": make_fake("fake")}, config={"watch": {"otlp": otlp}})
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    assert all(httpx.post(f"{server.base_url}/chat/completions", json=body).status_code == 200 for _ in range(20))
