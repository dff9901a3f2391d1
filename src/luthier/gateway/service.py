"""What a server holds while it runs: the models it serves, the gate in front of them, and where traces go."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from luthier.core.engine import Engine, Generation
from luthier.core.errors import InputError, LuthierError, NotFoundError, did_you_mean
from luthier.core.model import ModelRecord
from luthier.gateway.backend import answers
from luthier.gateway.config import GatewayConfig
from luthier.gateway.keys import Keys
from luthier.gateway.layers import Ask, compose
from luthier.gateway.limits import Gate
from luthier.gateway.routes import direct
from luthier.gateway.traces import TraceWriter
from luthier.gateway.wire import RequestError
from luthier.gateway.workers import Workers
from luthier.store.database import Store
from luthier.store.models import find
from luthier.store.traces import record_traces
from luthier.strategies._labels import answer_with_labels, labels_of, prompt_counter, tokenizer_folder

if TYPE_CHECKING:
    from luthier.gateway.exchange import Exchange

logger = logging.getLogger("luthier.gateway")


@dataclass(frozen=True)
class Price:
    """Per million tokens, in whatever currency the operator thinks in."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, answer: Generation, *, with_prompt: bool = True) -> float:
        """The cost of an answer; the prompt of several choices is paid once."""
        return self.of_tokens(answer.prompt_tokens if with_prompt else 0, answer.completion_tokens)

    def of_tokens(self, prompt: int, completion: int = 0) -> float:
        """The cost of so many tokens."""
        return (prompt * self.prompt + completion * self.completion) / 1e6


def read_prices(texts: Iterable[str], models: Sequence[str]) -> dict[str, Price]:
    """Prices from ``IN,OUT`` (every model) or ``MODEL=IN,OUT`` texts. Raises InputError."""
    out: dict[str, Price] = {}
    for text in texts:
        name, equals, numbers = text.rpartition("=")
        if equals and name not in models:
            raise InputError(f"price: {name!r} is not among the served models. {did_you_mean(name, models)}")
        try:
            prompt, completion = (float(number) for number in numbers.split(","))
        except ValueError as error:
            raise InputError(
                f"price must be IN,OUT or MODEL=IN,OUT per million tokens, for example 0.10,0.40; got {text!r}"
            ) from error
        if not (0 <= prompt < float("inf") and 0 <= completion < float("inf")):
            raise InputError(f"price must not be negative or infinite; got {text!r}")
        for model in [name] if equals else models:
            out[model] = Price(prompt, completion)
    return out


@dataclass(frozen=True)
class Served:
    """One model under the name that requests say.

    ``temperature`` and ``max_new_tokens`` hold when a request does not say: greedy for a model that is bound to a task (a
    promoted endpoint, weights tuned with a task prompt, a closed set of labels), OpenAI's 1.0 for the rest.
    """

    name: str
    engine: Engine
    record: ModelRecord | None = None
    labels: tuple[str, ...] = ()
    price: Price = Price()
    temperature: float = 1.0
    max_new_tokens: int = 256
    tokenizer: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """An entry of /v1/models: OpenAI's four fields, and exactly what answers."""
        info = self.engine.info
        return {
            "id": self.name,
            "object": "model",
            "created": _unix(self.record.created_at if self.record else ""),
            "owned_by": "luthier",
            "kind": self.record.kind if self.record else "",
            "engine": info.engine,
            "capabilities": sorted(info.capabilities),
            "context_length": info.context_length,
            "labels": list(self.labels),
            "model_digest": info.model_digest,
            "base_digest": info.base_digest,
            "template_digest": info.template_digest,
            "prompt_digest": info.prompt_digest,
            "default_temperature": self.temperature,
        }


def serve_as(name: str, engine: Engine, store: Store, price: Price) -> Served:
    """The Served for an open engine. A name that the store does not know (``fake``, ``openai:...``) has no record."""
    try:
        record = find(store, name)
    except NotFoundError:
        record = None
    labels = engine.info.labels
    if record is not None and not labels:
        labels = labels_of(store, record)
        engine = answer_with_labels(engine, labels, prompt_counter(store, record, engine))
    bound = bool(
        labels or engine.info.answers or engine.info.prompt_digest or (record is not None and record.kind == "endpoint")
    )
    most = record.meta.get("max_new_tokens") if record is not None else None
    return Served(
        name=name,
        engine=engine,
        record=record,
        labels=labels,
        price=price,
        temperature=0.0 if bound else 1.0,
        max_new_tokens=most if isinstance(most, int) and most > 0 else 256,
        tokenizer=tokenizer_folder(store, record) if record is not None else None,
    )


@dataclass
class Service:
    """A running server's state. ``gate`` and ``ask`` belong to the event loop; everything else is safe from several threads.

    ``ask`` is the outermost layer; it may be replaced while the server runs: questions that are on their way keep the one they began with.
    """

    models: Mapping[str, Served]
    store: Store
    keys: Keys
    gate: Gate
    traces: TraceWriter
    config: GatewayConfig = field(default_factory=GatewayConfig)
    workers: Workers = field(default_factory=Workers)
    started: float = field(default_factory=time.monotonic)
    ask: Ask = field(init=False)

    def __post_init__(self) -> None:
        self.ask = assemble(self)

    @staticmethod
    def open(
        models: Mapping[str, Served],
        store: Store,
        keys: Keys,
        *,
        max_concurrent: int,
        max_queue: int,
        config: GatewayConfig | None = None,
    ) -> Service:
        """A service whose traces go to ``store``."""
        writer = TraceWriter(lambda batch: record_traces(store, batch))
        return Service(models, store, keys, Gate(max_concurrent, max_queue), writer, config or GatewayConfig())

    async def admit(self, exchange: Exchange) -> None:
        """Let a request in. Raises LuthierError when its caller may not ask this model (404: others' models are not shown)."""
        exchange.caller.require("inference")
        if not exchange.caller.sees(exchange.model):
            self.refuse_model(exchange.model, [name for name in self.models if exchange.caller.sees(name)])

    def finish(self, exchange: Exchange, error: str | LuthierError = "") -> None:
        """A request is over: its traces are handed to the writer. The second call does nothing."""
        if exchange.finished:
            return
        exchange.finish(error)
        for trace in exchange.traces():
            self.traces.put(trace)
            logger.info(
                "%s %s %s %d+%d tokens %.3f s %s",
                trace.operation, trace.model, trace.finish_reason or "failed", trace.prompt_tokens, trace.completion_tokens,
                trace.latency_s, trace.id,
            )  # fmt: skip

    def model(self, name: str) -> Served:
        """The model that a request names. Raises RequestError 404 with the names that are served."""
        served = self.models.get(name)
        if served is None:
            self.refuse_model(name, list(self.models))
        return served

    def refuse_model(self, name: str, known: Sequence[str]) -> NoReturn:
        """Raise RequestError 404 with the names that are served."""
        near = did_you_mean(name, known).replace("Allowed:", "Served here:")
        others = "" if near.startswith("Served") else f" Served here: {', '.join(sorted(known))}."
        raise RequestError(
            f"model {name!r} is not served. {near}{others}", status=404, param="model", code="model_not_found"
        )

    def close(self, timeout_s: float = 10.0) -> None:
        """Wait for calls that still run, then write the traces that wait. Safe to call twice."""
        self.workers.join(timeout_s)
        self.traces.close()


def assemble(service: Service) -> Ask:
    """The layers of a service around the call of its engines (``gateway.layers``)."""
    return compose([direct(service)], partial(answers, service))


def _unix(iso: str) -> int:
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(iso).timestamp())
    except ValueError:
        return 0
