"""Spans of requests in OpenTelemetry's conventions for generative AI, sent in batches from a thread of their own.

A request is one span (SERVER), with one below it for each attempt at a model (CLIENT), each guardrail and each look into a cache
(INTERNAL), made when the request is over from what its exchange remembers: while it runs nothing is done for them. Attribute names are
those of https://github.com/open-telemetry/semantic-conventions-genai, as opentelemetry-semantic-conventions 0.66 lists them (``gen_ai.*``);
what they have no name for is ``luthier.*``. Usage stands on the request's span only, so that sums over spans count no token twice.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from luthier import __version__
from luthier.gateway.exchange import Exchange
from luthier.gateway.watch.traceparent import Parent, note_parent

if TYPE_CHECKING:
    from luthier.gateway.watch.watch import OtlpConfig

CAPACITY = 4096
BATCH = 256
EVERY_S = 1.0
LONGEST = 16_384

OPERATIONS = {"completion": "text_completion", "embedding": "embeddings", "responses": "chat"}
_SCOPE = InstrumentationScope("luthier.gateway", __version__)
_CHILDREN = {"guardrails": "guardrail", "cache": "cache", "route": "route"}

logger = logging.getLogger("luthier.gateway")


def otlp_exporter(config: OtlpConfig) -> SpanExporter:
    """An exporter over OTLP/HTTP (protobuf). Raises InputError for headers that are not there."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=config.url, headers=config.headers(), timeout=config.timeout_s)


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that is over, when that was (nanoseconds since 1970), and its place in a trace."""

    exchange: Exchange
    end_ns: int
    trace_id: int
    span_id: int
    parent: Parent | None

    def at_ns(self, seconds: float) -> int:
        """The time ``seconds`` after the request came."""
        return self.end_ns - int((self.exchange.ended_s - seconds) * 1e9)


class Spans:
    """Takes requests that are over (``put``, on the event loop) and sends their spans from a thread. What is too many, or refused by the
    receiver after the exporter's own retries, is dropped and counted; no request ever waits or fails for it."""

    def __init__(
        self, exporter: SpanExporter, config: OtlpConfig, redact: Callable[[str], str], *, capacity: int = CAPACITY
    ) -> None:
        self.exporter = exporter
        self.config = config
        self._redact = redact
        self._capacity = capacity
        self._resource = Resource.create({"service.name": config.service, "service.version": __version__})
        self._waiting: deque[Ended] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self.sent = 0
        self.dropped = 0
        self.failing = False
        self._thread = threading.Thread(target=self._run, name="luthier-spans", daemon=True)
        self._thread.start()

    def put(self, exchange: Exchange) -> None:
        """Take a request that is over; returns at once. Its trace is told its id outside."""
        parent = note_parent(exchange)
        trace_id = parent.trace_id if parent is not None else secrets.randbits(128) or 1
        if parent is None:
            exchange.details["otel"] = [{"trace_id": f"{trace_id:032x}"}]
        if not (parent.sampled if parent is not None else self._drawn(trace_id)):
            return
        ended = Ended(exchange, time.time_ns(), trace_id, secrets.randbits(64) or 1, parent)
        with self._changed:
            if len(self._waiting) >= self._capacity or self._closing:
                self.dropped += 1
                return
            self._waiting.append(ended)
            if len(self._waiting) in (1, BATCH):
                self._changed.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what waits and end; what cannot be sent in that time is dropped. Safe to call twice."""
        self.close_soon()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.exporter.shutdown()  # ends its waiting between two tries
            self._thread.join(1.0)

    def close_soon(self) -> None:
        """End when what waits is sent; returns at once."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def state(self) -> dict[str, Any]:
        """Counts for /health."""
        return {"sent": self.sent, "waiting": len(self._waiting), "dropped": self.dropped, "failing": self.failing}

    def _drawn(self, trace_id: int) -> bool:
        """Whether a trace is among the share that is sent: decided by its id, as OpenTelemetry's TraceIdRatioBased does."""
        share = self.config.sample
        return share >= 1.0 or (trace_id & (2**64 - 1)) < round(share * 2**64)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._closing:
                    self._changed.wait_for(lambda: len(self._waiting) >= BATCH or self._closing, EVERY_S)
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                closing = self._closing
            if batch:
                self._send(batch)
            elif closing:
                self.exporter.shutdown()
                return

    def _send(self, batch: list[Ended]) -> None:
        spans: list[ReadableSpan] = []
        try:
            for ended in batch:
                spans += self.spans_of(ended)
            result = self.exporter.export(spans)
        except Exception as error:  # whatever a request or an exporter holds must not end the thread
            logger.exception("spans could not be sent: %s", error)
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self.sent += len(batch)
            self.failing = False
            return
        self.dropped += len(batch)
        if not self.failing:
            logger.error("spans of %d requests were not taken by %s and are dropped", len(batch), self.config.url)
        self.failing = True

    def spans_of(self, ended: Ended) -> Iterator[ReadableSpan]:
        """The request's span, then those below it."""
        exchange = ended.exchange
        context = SpanContext(
            ended.trace_id, ended.span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
        )
        above = ended.parent
        remote = None
        if above is not None:
            remote = SpanContext(above.trace_id, above.span_id, True, TraceFlags(TraceFlags.SAMPLED))
        operation = OPERATIONS.get(exchange.operation, exchange.operation)
        attributes = {**_request(exchange, operation), **_response(exchange)}
        if self.config.content:
            attributes |= self._content(exchange)
        failed = bool(exchange.error) and exchange.status >= 500
        yield ReadableSpan(
            f"{operation} {exchange.model}", context, remote, self._resource, attributes, kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, self._redact(exchange.error)) if failed else Status(),
            start_time=ended.at_ns(0.0), end_time=ended.end_ns, instrumentation_scope=_SCOPE,
        )  # fmt: skip
        for attempt in exchange.details.get("attempts", ()):
            yield self._attempt(ended, context, attempt, operation)
        for layer, name in _CHILDREN.items():
            for said in exchange.details.get(layer, ()):
                title = f"{name} {said.get('name') or said.get('target') or ''}".strip()
                yield self._below(ended, context, title, {f"luthier.{name}.{k}": v for k, v in said.items()}, said)

    def _attempt(self, ended: Ended, above: SpanContext, said: Mapping[str, Any], operation: str) -> ReadableSpan:
        model, error = str(said.get("model", "")), str(said.get("error", ""))
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": model,
            "luthier.queue.wait_s": said.get("waited_s"),
            "error.type": _error_type(error),
        }
        if "first_s" in said:
            attributes["gen_ai.response.time_to_first_chunk"] = said["first_s"]
        return self._below(ended, above, f"{operation} {model}", attributes, said, SpanKind.CLIENT, error)

    def _below(
        self,
        ended: Ended,
        above: SpanContext,
        name: str,
        attributes: Mapping[str, Any],
        said: Mapping[str, Any],
        kind: SpanKind = SpanKind.INTERNAL,
        error: str = "",
    ) -> ReadableSpan:
        end_s = float(said.get("at_s", ended.exchange.ended_s))
        start_s = max(0.0, end_s - float(said.get("took_s", 0.0)))
        context = SpanContext(above.trace_id, secrets.randbits(64) or 1, False, above.trace_flags)
        failed = bool(error) and error != "left"
        return ReadableSpan(
            name, context, above, self._resource, self._plain(attributes), kind=kind,
            status=Status(StatusCode.ERROR, self._redact(error)) if failed else Status(),
            start_time=ended.at_ns(start_s), end_time=ended.at_ns(end_s), instrumentation_scope=_SCOPE,
        )  # fmt: skip

    def _plain(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes as OTLP has them: what a layer said may be nested, and may quote a client."""
        out: dict[str, Any] = {}
        for name, value in attributes.items():
            if isinstance(value, str):
                out[name] = self._redact(value)[:LONGEST]
            elif isinstance(value, bool | int | float):
                out[name] = value
            elif value not in (None, [], {}):
                out[name] = self._redact(json.dumps(value, ensure_ascii=False, default=str))[:LONGEST]
        return out

    def _content(self, exchange: Exchange) -> dict[str, Any]:
        asked = [message for prompt in exchange.messages for message in prompt]
        system = [self._part(m) for m in asked if m.get("role") == "system"]
        turns = [{"role": m.get("role", "user"), "parts": [self._part(m)]} for m in asked if m.get("role") != "system"]
        said = [
            {"role": "assistant", "parts": [{"type": "text", "content": self._cut(exchange.text(index))}],
             "finish_reason": exchange.made[index].finish_reason if index in exchange.made else "error"}
            for index in sorted(exchange.texts)
        ]  # fmt: skip
        named = {"gen_ai.system_instructions": system, "gen_ai.input.messages": turns, "gen_ai.output.messages": said}
        return {name: json.dumps(value, ensure_ascii=False) for name, value in named.items() if value}

    def _part(self, message: Mapping[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if isinstance(content, str):
            return {"type": "text", "content": self._cut(content)}
        texts = [str(part.get("text", "")) for part in content or () if isinstance(part, Mapping)]
        return {"type": "text", "content": self._cut("\n".join(text for text in texts if text))}

    def _cut(self, text: str) -> str:
        kept = self._redact(text)
        return kept if len(kept) <= LONGEST else f"{kept[:LONGEST]}… [{len(kept) - LONGEST} more characters]"


_PARAMETERS = {
    "max_new_tokens": "gen_ai.request.max_tokens", "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p", "top_k": "gen_ai.request.top_k", "seed": "gen_ai.request.seed",
    "presence_penalty": "gen_ai.request.presence_penalty", "frequency_penalty": "gen_ai.request.frequency_penalty",
}  # fmt: skip


def _request(exchange: Exchange, operation: str) -> dict[str, Any]:
    given = exchange.parameters
    out: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.request.model": exchange.model,
        "gen_ai.request.stream": bool(given.get("stream", False)),
        "luthier.tenant": exchange.caller.tenant,
        "luthier.trace_id": exchange.id,
    }
    out |= {name: given[own] for own, name in _PARAMETERS.items() if given.get(own) is not None}
    if exchange.n > 1:
        out["gen_ai.request.choice.count"] = exchange.n
    if given.get("stop"):
        out["gen_ai.request.stop_sequences"] = [str(stop) for stop in given["stop"]]
    named = {"gen_ai.conversation.id": exchange.session, "luthier.key_id": exchange.caller.key_id,
             "luthier.route": exchange.route, "luthier.cache": exchange.cache}  # fmt: skip
    return out | {name: value for name, value in named.items() if value}


def _response(exchange: Exchange) -> dict[str, Any]:
    prompt, completion, cached = exchange.usage
    out: dict[str, Any] = {
        "gen_ai.response.id": exchange.id,
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": completion,
        "http.response.status_code": exchange.status,
    }
    if cached:
        out["gen_ai.usage.cache_read.input_tokens"] = cached
    if exchange.first_s:
        out["gen_ai.response.time_to_first_chunk"] = min(exchange.first_s.values())
    if exchange.made:
        out["gen_ai.response.finish_reasons"] = [exchange.made[index].finish_reason for index in sorted(exchange.made)]
    if exchange.served is not None:
        info = exchange.served.engine.info
        out |= {"gen_ai.provider.name": info.engine, "gen_ai.response.model": exchange.served.name}
        if info.model_digest:
            out["luthier.model_digest"] = info.model_digest
    if exchange.cost:
        out["luthier.cost"] = exchange.cost
    if exchange.fault:
        out["error.type"] = exchange.fault
    return out


def _error_type(error: str) -> str | None:
    return None if not error else "client_gone" if error == "left" else "engine_error"
