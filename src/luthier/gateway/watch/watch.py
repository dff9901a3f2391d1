"""What a server lets its operators see: metrics, spans, and traces in which nothing stands that must not be kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from luthier.core.errors import InputError
from luthier.core.trace import Trace
from luthier.gateway.watch.redact import RULES, Redaction
from luthier.gateway.watch.retention import RetainConfig, Retention

if TYPE_CHECKING:
    from luthier.gateway.exchange import Exchange
    from luthier.gateway.service import Service
    from luthier.gateway.watch.metrics import Metrics
    from luthier.gateway.watch.otel import Spans

logger = logging.getLogger("luthier.gateway")


class OtlpConfig(BaseModel):
    """Where spans go.

    ``endpoint`` is the base of an OTLP/HTTP receiver (``/v1/traces`` is added) or the whole URL. ``headers_env`` names an environment
    variable with ``name=value`` pairs, separated by commas. ``content``: whether messages and answers go with the spans.
    ``sample``: the share of requests that are sent; a request that comes with a ``traceparent`` follows its caller's decision.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    endpoint: str = Field(pattern=r"^https?://[^\s/]+")
    headers_env: str | None = None
    content: bool = False
    sample: float = Field(default=1.0, ge=0.0, le=1.0)
    service: str = "luthier"
    timeout_s: float = Field(default=10.0, gt=0.0, le=60.0)

    @property
    def url(self) -> str:
        """The URL that spans are sent to."""
        return (
            self.endpoint
            if self.endpoint.rstrip("/").endswith("/v1/traces")
            else f"{self.endpoint.rstrip('/')}/v1/traces"
        )

    def headers(self, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The headers in ``headers_env``. Raises InputError that names the variable, never its content."""
        if self.headers_env is None:
            return {}
        text = environment.get(self.headers_env)
        pairs = [pair.partition("=") for pair in (text or "").split(",") if pair.strip()]
        if not pairs or not all(name.strip() and equals for name, equals, _ in pairs):
            state = "is not set" if not text else "must hold name=value pairs, separated by commas"
            raise InputError(
                f"watch.otlp.headers_env names the environment variable {self.headers_env!r}, which {state}"
            )
        return {name.strip(): value.strip() for name, _, value in pairs}


class SloConfig(BaseModel):
    """What a good answer is: seconds to the first token, seconds a token after it, seconds in all. ``target``: the share that must be good."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    ttft_s: float | None = Field(default=None, gt=0.0)
    tpot_s: float | None = Field(default=None, gt=0.0)
    latency_s: float | None = Field(default=None, gt=0.0)
    target: float = Field(default=0.99, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _some_bound(self) -> SloConfig:
        if self.ttft_s is None and self.tpot_s is None and self.latency_s is None:
            raise ValueError("needs at least one of ttft_s, tpot_s, latency_s")
        return self


class WatchConfig(BaseModel):
    """The section ``watch``.

    ``metrics``: count for Prometheus at all; ``open_metrics``: GET /metrics needs no key; ``per_tenant``: a label ``tenant`` on what is
    counted; ``exemplars``: trace ids beside the histograms, in the OpenMetrics form. ``redact``: what is taken out of traces (and of
    spans and feedback) before they are kept: ``pii``, ``all`` texts, ``none``, or a list of regular expressions. Keys and tokens are
    always taken out. ``keep_content: false`` keeps no messages and answers at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    metrics: bool = True
    open_metrics: bool = False
    per_tenant: bool = False
    exemplars: bool = False
    otlp: OtlpConfig | None = None
    slo: SloConfig | None = None
    redact: Literal["none", "pii", "all"] | Annotated[tuple[str, ...], Field(min_length=1)] = "none"
    keep_content: bool = True
    retain: RetainConfig | None = None

    @field_validator("redact", mode="before")
    @classmethod
    def _known_rule(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in RULES:
            raise ValueError(f"must be one of {', '.join(RULES)}, or a list of regular expressions; got {value!r}")
        return value

    @field_validator("redact")
    @classmethod
    def _compiles(cls, value: Any) -> Any:
        try:
            Redaction(value)
        except InputError as error:
            raise ValueError(error.message) from error
        return value


class Watch:
    """The watching of one service. ``finished`` belongs to the event loop; ``kept`` is called in the thread that writes traces."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.metrics: Metrics | None = None
        self.spans: Spans | None = None
        self.retention: Retention | None = None
        self.config = WatchConfig()
        self.redaction = Redaction()
        self.configure(service.config.watch)

    def configure(self, config: WatchConfig) -> None:
        """Take a new configuration. What was counted so far stays, as long as the labels stay. Raises InputError."""
        old, self.config = self.config, config
        self.redaction = Redaction(config.redact, keep_content=config.keep_content)
        if not config.metrics:
            self.metrics = None
        elif self.metrics is None or (old.per_tenant, old.exemplars, old.slo) != (
            config.per_tenant, config.exemplars, config.slo,
        ):  # fmt: skip
            from luthier.gateway.watch.metrics import Metrics

            self.metrics = Metrics(self.service, config)
        if self.spans is None or old.otlp != config.otlp:
            self._send_spans(config)
        if self.retention is None or old.retain != config.retain:
            self._retain(config)

    def finished(self, exchange: Exchange) -> None:
        """A request is over."""
        if self.spans is not None:
            self.spans.put(exchange)
        elif exchange.traceparent:
            from luthier.gateway.watch.traceparent import note_parent

            note_parent(exchange)
        if self.metrics is not None:
            self.metrics.count(exchange)

    def waited(self, seconds: float) -> None:
        """A call came to its turn after ``seconds``."""
        if self.metrics is not None:
            self.metrics.queue_s.observe(seconds)

    def kept(self, trace: Trace) -> Trace:
        """``trace`` as it may be stored."""
        return self.redaction.trace(trace)

    def redacted(self, text: str) -> str:
        """``text`` as it may be kept, by the configuration of the moment."""
        return self.redaction.text(text)

    def close(self) -> None:
        """Send the spans that wait. Safe to call twice."""
        if self.retention is not None:
            self.retention.close()
        if self.spans is not None:
            self.spans.close()

    def _send_spans(self, config: WatchConfig) -> None:
        before, self.spans = self.spans, None
        if config.otlp is not None:
            from luthier.gateway.watch.otel import Spans, otlp_exporter

            exporter = otlp_exporter(config.otlp)
            self.spans = Spans(exporter, config.otlp, self.redacted)
        if before is not None:
            before.close_soon()

    def _retain(self, config: WatchConfig) -> None:
        if self.retention is not None:
            self.retention.close()
        self.retention = Retention(self.service.store, config.retain) if config.retain is not None else None
