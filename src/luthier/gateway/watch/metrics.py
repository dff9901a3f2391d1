"""Figures for Prometheus: one registry a service, counted when a request is over, at a few microseconds each.

Labels are bounded: ``model`` is the name of a served model or empty, ``route`` comes from the configuration, ``kind`` of errors and the names
of guardrails from the code, and what goes beyond ``MOST_SERIES`` label sets is counted under ``other``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from luthier.core.engine import Measured
from luthier.gateway.api.wire import RequestError
from luthier.gateway.watch.goodput import WINDOWS, Goodput

if TYPE_CHECKING:
    from fastapi import FastAPI

    from luthier.gateway.exchange import Exchange
    from luthier.gateway.service import Service
    from luthier.gateway.watch.watch import WatchConfig

PATH = "/metrics"
MOST_SERIES = 1000
OTHER = "other"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)
TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0)
TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
WAIT_S = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKENS_PER_S = (1, 2, 5, 10, 20, 40, 60, 80, 120, 200, 400, 800, 1600)
TOKENS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)


class _Series:
    """What is counted under one set of labels, bound once."""

    __slots__ = (
        "cached", "completion", "cost", "first", "labels", "latency", "per_token", "prompt", "rate", "requests", "sizes",
    )  # fmt: skip

    def __init__(self, metrics: Metrics, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.latency = metrics.latency_s.labels(*labels)
        self.first = metrics.first_s.labels(*labels)
        self.per_token = metrics.per_token_s.labels(*labels)
        self.rate = metrics.tokens_per_s.labels(*labels)
        self.sizes = metrics.answer_tokens.labels(*labels)
        self.prompt, self.completion, self.cached = (
            metrics.tokens.labels(*labels, kind) for kind in ("input", "output", "cached")
        )
        self.cost = metrics.cost.labels(*labels)
        self.requests: dict[str, Any] = {}


class Metrics:
    """The figures of one service. ``count`` belongs to the event loop."""

    def __init__(self, service: Service, config: WatchConfig) -> None:
        self.service = service
        self.per_tenant = config.per_tenant
        self.exemplars = config.exemplars
        self.registry = registry = CollectorRegistry(auto_describe=False)
        base = ("route", "model", "operation") + (("tenant",) if config.per_tenant else ())

        def histogram(name: str, help_: str, buckets: tuple[float, ...], labels: tuple[str, ...] = base) -> Histogram:
            return Histogram(f"luthier_{name}", help_, labels, buckets=buckets, registry=registry)

        def counter(name: str, help_: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"luthier_{name}", help_, labels, registry=registry)

        self.requests = counter(
            "requests", "Requests that are over, by the class of their HTTP status.", (*base, "status")
        )
        self.latency_s = histogram("request_seconds", "From a request's arrival to its end.", SECONDS)
        self.first_s = histogram("time_to_first_token_seconds", "From a request's arrival to the first token.", TTFT_S)
        self.per_token_s = histogram("time_per_output_token_seconds", "Seconds a token after the first one.", TPOT_S)
        self.tokens_per_s = histogram("output_tokens_per_second", "Tokens a second of one answer.", TOKENS_PER_S)
        self.answer_tokens = histogram("answer_tokens", "Tokens of one answer.", TOKENS)
        self.tokens = counter(
            "tokens", "Tokens of prompts (input), answers (output), and prompts that were cached.", (*base, "type")
        )
        self.cost = counter("cost", "Cost of answers, in the currency of the price list.", base)
        self.queue_s = histogram("queue_seconds", "How long calls waited for their turn at an engine.", WAIT_S, ())
        self.errors = counter("errors", "Requests that failed, by the kind of error.", ("model", "kind"))
        self.cache = counter(
            "cache_lookups", "Requests that looked into a cache, by what came of it.", ("model", "result")
        )
        self.guardrails = counter("guardrail_hits", "Decisions of guardrails.", ("guardrail", "action"))
        self.attempts = counter("attempts", "Calls of engines, by how they ended.", ("model", "outcome"))
        self.goodput = Goodput(config.slo) if config.slo is not None else None
        registry.register(_State(service, self.goodput))
        self._series: dict[tuple[str, ...], _Series] = {}
        self._children: dict[tuple[Any, ...], Any] = {}

    def count(self, exchange: Exchange) -> None:
        """Count a request that is over."""
        series = self._of(exchange)
        status = f"{exchange.status // 100}xx"
        requests = series.requests.get(status)
        if requests is None:
            requests = series.requests[status] = self.requests.labels(*series.labels, status)
        requests.inc()
        seconds = exchange.ended_s
        exemplar = {"trace_id": exchange.id} if self.exemplars else None
        series.latency.observe(seconds, exemplar)
        first_s = min(exchange.first_s.values()) if exchange.first_s else None
        prompt, completion, cached = exchange.usage
        per_token = None
        if first_s is not None and exchange.operation not in ("embedding", "rerank"):
            series.first.observe(first_s, exemplar)
            per_token = _per_token(exchange)
            if per_token is not None:
                series.per_token.observe(per_token, exemplar)
                series.rate.observe(1 / per_token)
        if prompt:
            series.prompt.inc(prompt)
        if completion:
            series.completion.inc(completion)
            series.sizes.observe(completion)
        if cached:
            series.cached.inc(cached)
        cost = exchange.cost
        if cost:
            series.cost.inc(cost)
        self._details(exchange)
        if self.goodput is not None:
            self.goodput.count(exchange.status, first_s, per_token, seconds)

    def _details(self, exchange: Exchange) -> None:
        model = self._model(exchange)
        if exchange.fault:
            self._child(self.errors, model, exchange.fault).inc()
        details = exchange.details
        for said in details.get("cache", ()):
            self._child(self.cache, model, str(said.get("found", ""))).inc()
        for said in details.get("guardrails", ()):
            self._child(self.guardrails, str(said.get("name", "")), str(said.get("action", ""))).inc()
        for said in details.get("attempts", ()):
            error = said.get("error")
            outcome = "ok" if not error else "left" if error == "left" else "failed"
            self._child(self.attempts, self._known(str(said.get("model", ""))), outcome).inc()

    def _of(self, exchange: Exchange) -> _Series:
        labels = self._labels(exchange)
        series = self._series.get(labels)
        if series is None:
            if len(self._series) >= MOST_SERIES:
                labels = (OTHER,) * len(labels)
            series = self._series[labels] = self._series.get(labels) or _Series(self, labels)
        return series

    def _labels(self, exchange: Exchange) -> tuple[str, ...]:
        labels = (exchange.route, self._model(exchange), exchange.operation)
        return (*labels, exchange.caller.tenant) if self.per_tenant else labels

    def _model(self, exchange: Exchange) -> str:
        return exchange.served.name if exchange.served is not None else self._known(exchange.model)

    def _known(self, name: str) -> str:
        """A served model's name; nobody makes series by asking for others."""
        return name if name in self.service.models else ""

    def _child(self, counter: Counter, *labels: str) -> Any:
        key = (counter, *labels)
        child = self._children.get(key)
        if child is None:
            if len(self._children) >= MOST_SERIES:
                return counter.labels(*(OTHER,) * len(labels))
            child = self._children[key] = counter.labels(*labels)
        return child

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The figures as text, and its content type: the form that ``accept`` asks for."""
        encode, kind = choose_encoder(accept)
        return encode(self.registry), kind


def _per_token(exchange: Exchange) -> float | None:
    """Mean seconds a token after the first one, over all choices; None when no answer has two tokens or nobody knows when they came."""
    seconds, tokens = 0.0, 0
    for index, answer in exchange.made.items():
        took = exchange.end_s[index] - exchange.first_s[index]
        if answer.completion_tokens > 1 and took > 0.0:
            seconds += took
            tokens += answer.completion_tokens - 1
    return seconds / tokens if tokens else None


class _State(Collector):
    """What is read when it is asked for."""

    def __init__(self, service: Service, goodput: Goodput | None) -> None:
        self.service = service
        self.goodput = goodput

    def collect(self) -> Iterator[Any]:
        """Gauges and counts that the service keeps anyway."""
        service = self.service
        gates = {"": service.gate} | dict(_gates(service))
        running = GaugeMetricFamily("luthier_requests_running", "Engine calls that run.", labels=["model"])
        waiting = GaugeMetricFamily(
            "luthier_requests_waiting", "Engine calls that wait for their turn.", labels=["model"]
        )
        for name, gate in gates.items():
            running.add_metric([name], gate.running)
            waiting.add_metric([name], gate.waiting)
        yield from (running, waiting)
        traces = service.traces.state()
        yield _counter("traces_written", "Traces that are in the store.", traces["written"])
        yield _counter("traces_dropped", "Traces that could not be kept.", traces["dropped"])
        yield GaugeMetricFamily("luthier_traces_waiting", "Traces that wait to be written.", traces["waiting"])
        if service.watch.spans is not None:
            spans = service.watch.spans.state()
            yield _counter("spans_sent", "Requests whose spans were taken.", spans["sent"])
            yield _counter("spans_dropped", "Requests whose spans were dropped.", spans["dropped"])
        yield GaugeMetricFamily("luthier_uptime_seconds", "Since the server began.", time.monotonic() - service.started)
        yield from self._engines()
        if self.goodput is not None:
            yield from self._goodput(self.goodput)

    def _engines(self) -> Iterator[Any]:
        found: dict[str, GaugeMetricFamily] = {}
        for name, served in list(self.service.models.items()):
            if not isinstance(served.engine, Measured):
                continue
            for key, value in served.engine.stats().items():
                family = found.setdefault(key, GaugeMetricFamily(f"luthier_engine_{key}", f"Engine: {key.replace('_', ' ')}.", labels=["model"]))  # fmt: skip
                family.add_metric([name], float(value))
        yield from found.values()

    def _goodput(self, goodput: Goodput) -> Iterator[Any]:
        counted = CounterMetricFamily(
            "luthier_slo_requests", "Requests by whether they met every bound.", labels=["met"]
        )
        for met, count in (("true", goodput.met), ("false", goodput.counted - goodput.met)):
            counted.add_metric([met], count)
        missed = CounterMetricFamily("luthier_slo_missed", "Requests that missed a bound.", labels=["bound"])
        for bound, count in goodput.missed.items():
            missed.add_metric([bound], count)
        share = GaugeMetricFamily(
            "luthier_slo_goodput_ratio", "Share of requests that met every bound.", labels=["window"]
        )
        burn = GaugeMetricFamily(
            "luthier_slo_burn_rate", "Missed share over the share that may be missed.", labels=["window"]
        )
        for name, seconds in WINDOWS.items():
            good = goodput.share(seconds)
            if good is not None:
                share.add_metric([name], good)
                burn.add_metric([name], (1 - good) / (1 - goodput.slo.target))
        target = GaugeMetricFamily(
            "luthier_slo_target_ratio", "The share that should meet every bound.", goodput.slo.target
        )
        yield from (counted, missed, share, burn, target)


def _gates(service: Service) -> Iterator[tuple[str, Any]]:
    """Models that have a gate of their own."""
    for name, served in list(service.models.items()):
        gate = getattr(served, "gate", None)
        if gate is not None and gate is not service.gate:
            yield name, gate


def _counter(name: str, help_: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"luthier_{name}", help_, value)


def register(app: FastAPI, service: Service) -> None:
    """Add GET /metrics."""

    @app.get(PATH, include_in_schema=False)
    async def metrics(request: Request) -> Response:
        """The figures of this server, for Prometheus."""
        watch = service.watch
        if not watch.config.open_metrics:
            request.scope["luthier.caller"].require("admin")
        if watch.metrics is None:
            raise RequestError("this server counts nothing: its configuration says watch.metrics: false", status=404)
        body, kind = await asyncio.to_thread(watch.metrics.exposition, request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": kind})
