"""The models that a server serves, while they come and go.

A name stands for a target: one engine, or a pool of replicas. What is loaded becomes visible at once and whole; what is taken away gets no
new requests, and its engine is closed when the last request that holds it has ended. Loading and closing happen in threads, one at a
time, so that adapters of one base go on sharing it. An engine has its weights in memory: deleting a model from the store does not touch what
is served.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from luthier.core.engine import Engine
from luthier.core.errors import ConflictError, InputError, NotFoundError, did_you_mean
from luthier.gateway.targets.breaker import Breaker
from luthier.gateway.targets.gate import Gate
from luthier.gateway.targets.policy import Breaking, Health, Policy, Resilience
from luthier.gateway.targets.recent import Recent
from luthier.gateway.targets.served import Price, Served, read_price, serve_as
from luthier.store.database import Store

Source = Literal["given", "file", "loaded"]
"""Whence a target comes: the command line or Python, the configuration file, a request to load it."""

logger = logging.getLogger("luthier.gateway")


def _read_price(value: Any) -> Any:
    if isinstance(value, str):
        return read_price(value)
    if isinstance(value, list | tuple):
        return read_price(",".join(map(str, value)))
    return value


class ReplicaConfig(BaseModel):
    """What one replica has otherwise than the model's own section says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = ""
    engine: str = ""
    options: Mapping[str, Any] = Field(default_factory=dict)


class ModelConfig(Resilience):
    """A served name. ``model`` is what answers (left out: the name itself), ``engine`` and ``options`` with what.

    ``replicas`` are several of it, or what each has otherwise: the one that has least to do is asked. ``price`` is per million prompt and
    answer tokens. ``context_length`` is needed where the engine does not know (a remote one). ``max_concurrent`` gives each replica a gate of
    its own, with ``max_queue`` waiting; without it all models share the server's. ``temperature`` and ``max_new_tokens`` hold for requests that
    do not say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = ""
    engine: str = "auto"
    options: Mapping[str, Any] | None = None
    replicas: int | tuple[ReplicaConfig, ...] = Field(default=1)
    aliases: tuple[str, ...] = ()
    price: Annotated[Price, BeforeValidator(_read_price)] = Price()
    context_length: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_new_tokens: int | None = Field(default=None, ge=1)
    max_concurrent: int | None = Field(default=None, ge=1)
    max_queue: int = Field(default=128, ge=0)
    breaker: Breaking = Breaking()
    health: Health = Health()

    @model_validator(mode="after")
    def _some_replicas(self) -> ModelConfig:
        count = self.replicas if isinstance(self.replicas, int) else len(self.replicas)
        if not 1 <= count <= 64:
            raise ValueError(f"replicas must be 1 to 64; got {count}")
        return self

    def engines(self, name: str) -> list[tuple[str, str, Mapping[str, Any] | None]]:
        """(model, engine, options) of each replica."""
        own = (self.model or name, self.engine, self.options)
        if isinstance(self.replicas, int):
            return [own] * self.replicas
        return [
            (each.model or own[0], each.engine or own[1], {**(own[2] or {}), **each.options} or None)
            for each in self.replicas
        ]


def read_models(value: Any) -> Any:
    """The section ``models``: a list of names is as good as a mapping, and a model's name as good as a section with nothing else."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = {name: {} for name in value}
    if not isinstance(value, Mapping):
        return value
    return {
        name: {"model": said} if isinstance(said, str) else {} if said is None else said for name, said in value.items()
    }


Models = Annotated[dict[str, ModelConfig], BeforeValidator(read_models)]


@dataclass(eq=False)
class Replica:
    """One engine of a target, and ``served`` as it was before the target's settings.

    ``problem`` says why it gets no requests, after ``failures`` health checks in a row found it unwell.
    """

    served: Served
    plain: Served
    breaker: Breaker
    owned: bool = True
    problem: str = ""
    failures: int = 0
    checked_at: float | None = None

    @property
    def ready(self) -> bool:
        """Whether it may be asked now."""
        return not self.problem and self.breaker.ready()

    def as_dict(self) -> dict[str, Any]:
        """For /health."""
        requests, failed = self.breaker.counts()
        state = "unwell" if self.problem else self.breaker.state
        shown = {"state": state, "running": self.served.use.count, "recent": requests, "failed": failed}
        return shown | ({"problem": self.problem} if self.problem else {})


@dataclass(eq=False)
class Target:
    """A served name. ``hidden`` ones cannot be asked by clients: they work for routes."""

    name: str
    config: ModelConfig
    replicas: list[Replica]
    source: Source = "given"
    hidden: bool = False
    firsts: Recent = field(default_factory=Recent)
    _next: int = 0

    @property
    def served(self) -> Served:
        """What answers: the first replica, where it matters not which."""
        return self.replicas[0].served

    @property
    def policy(self) -> Policy:
        """What is done when it fails."""
        return Policy().under(self.config)

    def pick(self, avoid: Collection[Replica] = ()) -> Replica | None:
        """The replica that has least to do, of those that are well and not among ``avoid``; of equals one after the other."""
        ready = [each for each in self.replicas if each.ready and each not in avoid]
        if len(ready) < 2:
            return ready[0] if ready else None
        self._next += 1
        order = [ready[(self._next + place) % len(ready)] for place in range(len(ready))]
        return min(order, key=lambda each: each.served.use.count)

    def as_dict(self) -> dict[str, Any]:
        """For /health."""
        return {"source": self.source, "replicas": [each.as_dict() for each in self.replicas]}


class Registry(Mapping[str, Served]):
    """Served models by name; an alias leads to its model. Changes belong to the event loop, or to nobody while there is none."""

    def __init__(self, store: Store, *, now: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now = now
        self._targets: dict[str, Target] = {}
        self._aliases: dict[str, str] = {}
        self._shared: dict[int, dict[Any, Any]] = {}  # what engines share in memory, by the number of the replica
        self._lock = asyncio.Lock()  # one change at a time
        self._leaving: set[Replica] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- looking

    def __getitem__(self, name: str) -> Served:
        found = self.target(name)
        if found is None:
            raise KeyError(name)
        return found.served

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, target in self._targets.items() if not target.hidden])

    def __len__(self) -> int:
        return sum(not target.hidden for target in self._targets.values())

    def target(self, name: str, *, hidden: bool = False) -> Target | None:
        """The target of a name or an alias; ``hidden`` ones only for who knows of them."""
        found = self._targets.get(self._aliases.get(name, name))
        return found if found is not None and (hidden or not found.hidden) else None

    def targets(self) -> list[Target]:
        """All of them."""
        return list(self._targets.values())

    def aliases(self) -> dict[str, str]:
        """Alias -> name."""
        return dict(self._aliases)

    # ---- loading (blocks)

    def open(self, name: str, config: ModelConfig, source: Source, *, hidden: bool = False) -> Target:
        """Load a target's engines; it is not visible yet. Raises LuthierError, and then nothing is left open."""
        from luthier.strategies._load import load_many

        replicas: list[Replica] = []
        try:
            for number, (model, engine, options) in enumerate(config.engines(name)):
                shared = self._shared.setdefault(number, {})
                chosen = _without_retries(model, engine, options)
                opened = load_many([model], engine=engine, store=self._store, options=chosen, shared=shared)[model]
                replicas.append(self._replica(name, opened, config, model))
        except BaseException:
            for each in replicas:
                each.served.engine.close()
            raise
        return Target(name, config, replicas, source, hidden)

    def hold(self, name: str, engines: Sequence[Engine], config: ModelConfig, *, owned: bool = False) -> Target:
        """A target of engines that are open already; those that are not ``owned`` stay open."""
        replicas = [self._replica(name, engine, config, config.model or name, owned=owned) for engine in engines]
        return Target(name, config, replicas)

    def _replica(self, name: str, engine: Engine, config: ModelConfig, stored: str, *, owned: bool = True) -> Replica:
        plain = serve_as(name, engine, self._store, config.price, stored=stored)
        return Replica(_configured(plain, config), plain, Breaker(config.breaker, self._now), owned)

    def with_settings(self, target: Target, config: ModelConfig) -> Target:
        """The same engines under other settings; not visible yet."""
        replicas = []
        for each in target.replicas:
            served = _configured(replace(each.plain, price=config.price), config)
            if _gate_of(config) == _gate_of(target.config):
                served = replace(served, gate=each.served.gate)
            same = config.breaker == target.config.breaker
            breaker = each.breaker if same else Breaker(config.breaker, self._now)
            replicas.append(replace(each, served=served, breaker=breaker))
        return replace(target, config=config, replicas=replicas)

    # ---- changing

    def show(self, targets: Iterable[Target], drop: Iterable[str] = ()) -> None:
        """Make ``targets`` visible, and take those away that are called as ``drop`` says or as a new one, all at once.

        Raises InputError when two want one name, and then nothing has changed.
        """
        coming = {target.name: target for target in targets}
        staying = {name: target for name, target in self._targets.items() if name not in set(drop)}
        after = {**staying, **coming}
        aliases = self._checked_aliases(after.values())
        gone = [target for name, target in self._targets.items() if after.get(name) is not target]
        self._targets, self._aliases = after, aliases
        kept = {id(replica.served.engine) for target in after.values() for replica in target.replicas}
        for target in gone:
            for replica in target.replicas:
                if id(replica.served.engine) not in kept:
                    self._retire(replica)

    def _checked_aliases(self, targets: Collection[Target]) -> dict[str, str]:
        names = {target.name for target in targets}
        out: dict[str, str] = {}
        for target in targets:
            for alias in target.config.aliases:
                if alias in names or alias in out:
                    raise InputError(
                        f"aliases of {target.name}: {alias!r} is the name of {out.get(alias, 'a model')} already"
                    )
                out[alias] = target.name
        return out

    async def load(self, name: str, config: ModelConfig, *, swap: bool = False) -> Target:
        """Load a model and serve it; ``swap`` lets it take the place of one that is served under its name.

        Requests that come meanwhile get the old one. Raises ConflictError for a name that is taken, LuthierError for what cannot be loaded. A
        caller who gives up does not stop it.
        """
        return await asyncio.shield(asyncio.ensure_future(self._load(name, config, swap=swap)))

    async def _load(self, name: str, config: ModelConfig, *, swap: bool) -> Target:
        async with self._lock:
            known = self.target(name, hidden=True)
            if known is not None and not (swap and known.name == name):
                raise ConflictError(
                    f"{name!r} is served already", hint="give 'swap': true to load it anew in its place"
                )
            target = await asyncio.to_thread(self.open, name, config, "loaded")
            try:
                self.show([target])
            except BaseException:
                await asyncio.to_thread(_close_all, target.replicas)
                raise
            logger.info("%s is served now", name)
            return target

    async def load_all(self, wanted: Mapping[str, ModelConfig], hidden: Collection[str] = ()) -> list[Target]:
        """Load targets without showing them. When one fails, none is left open; raises its error."""
        opened: list[Target] = []
        async with self._lock:
            try:
                for name, config in wanted.items():
                    opened.append(await asyncio.to_thread(self.open, name, config, "file", hidden=name in hidden))
            except BaseException:
                for target in opened:
                    await asyncio.to_thread(_close_all, target.replicas)
                raise
        return opened

    async def discard(self, targets: Iterable[Target]) -> None:
        """Close what was loaded and is not to be shown after all."""
        async with self._lock:
            for target in targets:
                await asyncio.to_thread(_close_all, target.replicas)

    def remove(self, name: str) -> Target:
        """Take a model away: from now on its name is not known; requests that hold it end in peace. Raises NotFoundError."""
        target = self.target(name)
        if target is None or target.name != name:
            said = f"an alias of {target.name!r}, which is to be removed by its name" if target else "not served"
            raise NotFoundError(f"model {name!r} is {said}. {did_you_mean(name, list(self))}")
        self.show((), drop=[name])
        logger.info("%s is served no more", name)
        return target

    def _retire(self, replica: Replica) -> None:
        if not replica.owned:
            return
        self._leaving.add(replica)
        replica.served.use.on_idle = lambda: self._close_idle(replica)
        if not replica.served.use.count:
            self._close_idle(replica)

    def _close_idle(self, replica: Replica) -> None:
        if replica not in self._leaving:
            return
        try:
            task = asyncio.get_running_loop().create_task(self._close_one(replica))
        except RuntimeError:  # nothing runs yet, or any more
            self._leaving.discard(replica)
            replica.served.engine.close()
            return
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close_one(self, replica: Replica) -> None:
        async with self._lock:
            if replica in self._leaving and not replica.served.use.count:
                self._leaving.discard(replica)
                await asyncio.to_thread(_close_all, [replica])

    def close(self) -> None:
        """Close every engine that is not somebody else's. Safe to call twice."""
        left = [*self._leaving, *(replica for target in self._targets.values() for replica in target.replicas)]
        self._leaving.clear()
        self._targets, self._aliases = {}, {}
        _close_all([replica for replica in left if replica.owned])


def _configured(served: Served, config: ModelConfig) -> Served:
    changes: dict[str, Any] = {}
    if config.context_length is not None:
        changes["most_tokens"] = config.context_length
    if config.temperature is not None:
        changes["temperature"] = config.temperature
    if config.max_new_tokens is not None:
        changes["max_new_tokens"] = config.max_new_tokens
    if config.max_concurrent is not None:
        changes["gate"] = Gate(config.max_concurrent, config.max_queue)
    return replace(served, **changes)


def _gate_of(config: ModelConfig) -> tuple[int | None, int]:
    return config.max_concurrent, config.max_queue


def _without_retries(model: str, engine: str, options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The gateway tries again itself, where every failure is seen and counted: an engine that would, too, is told not to."""
    from luthier.core import catalog
    from luthier.engines._open import UNSTORED

    name = model.split(":", 1)[0] if engine == "auto" else engine
    if name not in UNSTORED or "retries" in (options or {}):
        return options
    fields = catalog.load("engines", name).config_class.model_fields
    return {**(options or {}), "retries": 0} if "retries" in fields else options


def _close_all(replicas: Iterable[Replica]) -> None:
    for replica in replicas:
        try:
            replica.served.engine.close()
        except Exception:  # what one engine gets wrong at its end must not keep the others open
            logger.exception("an engine of %s could not be closed", replica.served.name)
