"""What a server holds while it runs: the models it serves, the gate in front of them, and where traces go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from luthier.core.engine import Engine
from luthier.core.errors import LuthierError, did_you_mean
from luthier.gateway.access.keys import Keys
from luthier.gateway.access.quota import Quota
from luthier.gateway.api.wire import RequestError
from luthier.gateway.backend import answers
from luthier.gateway.cache.layer import Cache, cached, open_cache
from luthier.gateway.config import GatewayConfig
from luthier.gateway.guard.handover import record_handover
from luthier.gateway.guard.layer import guard_of, guarded
from luthier.gateway.guard.run import Guard
from luthier.gateway.knowledge.bases import Bases
from luthier.gateway.layers import Ask, Layer, compose
from luthier.gateway.reload import EVERY_S, Reloader, every
from luthier.gateway.targets.gate import Gate
from luthier.gateway.targets.health import HealthChecks
from luthier.gateway.targets.registry import Registry
from luthier.gateway.targets.router import Router
from luthier.gateway.targets.routes import routed
from luthier.gateway.targets.served import Price, Served, read_prices, serve_as
from luthier.gateway.upkeep import Upkeep
from luthier.gateway.watch.traces import TraceWriter
from luthier.gateway.watch.watch import Watch
from luthier.gateway.workers import Workers
from luthier.store.database import Store
from luthier.store.files import expire_files
from luthier.store.traces import record_traces

if TYPE_CHECKING:
    from luthier.gateway.batch.worker import BatchWorker
    from luthier.gateway.exchange import Exchange

__all__ = ["Price", "Served", "Service", "assemble", "read_prices", "serve_as"]

logger = logging.getLogger("luthier.gateway")


@dataclass
class Service:
    """A running server's state. ``gate`` and ``ask`` belong to the event loop; everything else is safe from several threads.

    ``ask`` is the outermost layer; it may be replaced while the server runs: questions that are on their way keep the one they began with.
    """

    models: Registry
    store: Store
    keys: Keys
    gate: Gate
    traces: TraceWriter
    config: GatewayConfig = field(default_factory=GatewayConfig)
    workers: Workers = field(default_factory=Workers)
    started: float = field(default_factory=time.monotonic)
    quota: Quota | None = None
    upkeep: Upkeep = field(default_factory=Upkeep)
    guard: Guard | None = field(init=False, default=None)
    watch: Watch = field(init=False)
    cache: Cache | None = field(init=False, default=None)
    batches: BatchWorker | None = None
    bases: Bases = field(init=False)
    reloader: Reloader | None = None
    router: Router = field(init=False)
    health: HealthChecks = field(init=False)
    ask: Ask = field(init=False)
    _rounds: list[asyncio.Future[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = Watch(self)
        self.bases = Bases(self)
        self.guard = guard_of(self.config.guardrails, self.engines(), self.store)
        if self.config.cache:
            self.cache = open_cache(self.config.cache, self.models, self.store, self.workers.run)
        self.router = Router(self)
        self.router.routes = self.router.built(self.config.routes)
        self.health = HealthChecks(self.models, self.workers, self.router.now)
        self.ask = assemble(self)
        if self.keys.store is not None:
            self.quota = Quota(self.keys.store, self.keys)
            self.upkeep.add("keys", self.keys.refresh)
            self.upkeep.add("usage", self.quota.sync, last=self.quota.close)
            self.upkeep.add("last used", self.keys.write_used, every_s=10.0)
        self.upkeep.add("cache", self._trim_cache, every_s=60.0, last=lambda: None)
        self.upkeep.add("files", partial(expire_files, self.store), every_s=3600.0, last=lambda: None)

    @staticmethod
    def open(
        models: Registry,
        store: Store,
        keys: Keys,
        *,
        max_concurrent: int,
        max_queue: int,
        config: GatewayConfig | None = None,
    ) -> Service:
        """A service whose traces go to ``store``, as far as they may be kept. Raises InputError for what the configuration names and is not there."""
        writer = TraceWriter(lambda batch: record_traces(store, [service.watch.kept(trace) for trace in batch]))
        try:
            service = Service(models, store, keys, Gate(max_concurrent, max_queue), writer, config or GatewayConfig())
        except BaseException:
            writer.close()
            raise
        return service

    def engines(self) -> dict[str, Engine]:
        """The engines of the served models by their names, as they are now."""
        return {name: served.engine for name, served in self.models.items()}

    async def admit(self, exchange: Exchange, *, bulk: bool = False) -> None:
        """Let a request in. Raises LuthierError when its caller may not ask this model (404: others' models are not shown), or has used up its limits.

        ``bulk``: a line of a batch, which the rates of a minute do not hold.
        """
        exchange.caller.require("inference")
        if not exchange.caller.sees(exchange.model):
            self.refuse_model(exchange.model, [name for name in self.names() if exchange.caller.sees(name)])
        if self.quota is not None:
            self.quota.admit(self, exchange, bulk=bulk)

    def finish(self, exchange: Exchange, error: str | LuthierError = "") -> None:
        """A request is over: its traces are handed to the writer. The second call does nothing."""
        if exchange.finished:
            return
        exchange.finish(error)
        if self.guard is not None:
            self.guard.veil(exchange)
        self.watch.finished(exchange)
        for trace in exchange.traces():
            self.traces.put(trace)
            logger.info(
                "%s %s %s %d+%d tokens %.3f s %s",
                trace.operation, trace.model, trace.finish_reason or "failed", trace.prompt_tokens, trace.completion_tokens,
                trace.latency_s, trace.id,
            )  # fmt: skip

    def switch(self, config: GatewayConfig, guard: Guard | None) -> None:
        """Go on with another configuration and its guardrails; questions that are on their way keep the layers they began with."""
        before, self.guard = self.guard, guard
        self.config = config
        self.ask = assemble(self)
        if before is not None and before is not guard:
            before.retire()

    async def other_cache(self, config: GatewayConfig) -> Cache | None:
        """The cache of another configuration: this one's when its section is the same. Raises LuthierError for what cannot be opened."""
        if config.cache == self.config.cache:
            return self.cache
        if not config.cache:
            return None
        return await asyncio.to_thread(open_cache, config.cache, self.models, self.store, self.workers.run)

    def _trim_cache(self) -> None:
        if self.cache is not None:
            self.cache.store.trim()

    def begin(self) -> None:
        """Begin what runs beside the requests; belongs to the running event loop."""
        rounds: list[tuple[float, Callable[[], Awaitable[None]]]] = [(1.0, self.router.tick), (1.0, self.health.look)]
        if self.reloader is not None:
            rounds.append((EVERY_S, self.reloader.look))
        self._rounds = [asyncio.ensure_future(every(seconds, run)) for seconds, run in rounds]

    def close_gates(self) -> None:
        """Let no call in any more."""
        own = [each.served.gate for target in self.models.targets() for each in target.replicas]
        for gate in (self.gate, *own):
            if gate is not None:
                gate.closed = True

    def end(self) -> None:
        """Begin nothing more."""
        for each in (*self._rounds, *self.router.aside):
            each.cancel()

    def names(self) -> list[str]:
        """What can be asked: models, their aliases, and routes."""
        return [*self.models, *self.models.aliases(), *self.router.routes]

    def describe(self, name: str) -> dict[str, Any]:
        """An entry of /v1/models; of a route: what all of its targets can."""
        if name not in self.router.routes:
            return self.models[name].as_dict() | {"id": name}
        reached = [target.served.as_dict() for target in self.router.reachable(name)]
        both = {
            key: sorted(set.intersection(*(set(each[key]) for each in reached)))
            for key in ("capabilities", "parameters")
        }
        digests = dict.fromkeys(("model_digest", "base_digest", "template_digest", "prompt_digest"), "")
        return {
            **reached[0], **digests, **both, "id": name, "kind": "route", "engine": "", "labels": [],
            "context_length": max(each["context_length"] for each in reached),
        }  # fmt: skip

    def ready(self) -> bool:
        """Whether any model can be asked now."""
        targets = [target for target in self.models.targets() if not target.hidden]
        return not self.gate.closed and any(target.pick() is not None for target in targets)

    def details(self) -> dict[str, Any]:
        """For /health: how every model, route and the configuration file are."""
        shown: dict[str, Any] = {"targets": {target.name: target.as_dict() for target in self.models.targets()}}
        if self.router.routes:
            shown["routes"] = {name: route.as_dict() for name, route in self.router.routes.items()}
        config = self.reloader.state() if self.reloader is not None else None
        return shown | ({"config": config} if config is not None else {})

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
        self.bases.close()
        if self.guard is not None:
            self.guard.close()
        self.traces.close()
        self.upkeep.close()
        if self.cache is not None:
            self.cache.close()
        self.watch.close()


def assemble(service: Service) -> Ask:
    """The layers of a service around the call of its engines (``gateway.layers``)."""
    layers: list[Layer] = [routed(service)]
    if service.guard is not None:
        layers.insert(0, guarded(service.guard, partial(record_handover, service)))
    if service.cache is not None:
        layers.append(cached(service.cache))
    return compose(layers, partial(answers, service))
