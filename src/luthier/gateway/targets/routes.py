"""The section ``routes``: names that clients ask as ``model``, and how each finds what answers."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ConfigDict, Field, SerializeAsAny, model_validator

from luthier.core import catalog
from luthier.core.engine import Sampling, require
from luthier.core.errors import InputError, did_you_mean
from luthier.core.message import Prompt
from luthier.gateway.backend import call
from luthier.gateway.calls import Piece
from luthier.gateway.layers import Ask, Layer, Question
from luthier.gateway.routing._rule import RuleConfig
from luthier.gateway.targets.gate import Turn
from luthier.gateway.targets.policy import Resilience
from luthier.gateway.targets.registry import ModelConfig

if TYPE_CHECKING:
    from luthier.gateway.exchange import Exchange
    from luthier.gateway.service import Service
    from luthier.gateway.targets.served import Served

Made = TypeVar("Made")


class RouteConfig(Resilience):
    """One route. ``strategy`` is an entry of the catalogue of routes, whose options stand beside it. When every target of its choice has failed,
    ``fallbacks`` are asked in turn. Targets are models or other routes. ``timeout_s`` bounds the whole request, all tries together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: str
    fallbacks: tuple[str, ...] = ()
    rule: SerializeAsAny[RuleConfig] = Field(repr=False)

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_strategy(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("strategy"), str) or "rule" in data:
            return data
        own = {key: value for key, value in data.items() if key in cls.model_fields}
        options = {key: value for key, value in data.items() if key not in own}
        try:
            rule = catalog.load("routes", data["strategy"]).configure(options)
        except InputError as error:
            raise ValueError(str(error)) from error
        return {**own, "rule": rule}

    def names(self) -> tuple[str, ...]:
        """Everything that it may ask."""
        return tuple(dict.fromkeys([*self.rule.names(), *self.fallbacks]))


Routes = dict[str, RouteConfig]


def check_routes(routes: Mapping[str, RouteConfig], models: Collection[str]) -> None:
    """Raise InputError for a target that is neither a model nor a route, a name that is both, and a route that leads to itself."""
    known = [*models, *routes]
    for name, route in routes.items():
        if name in models:
            raise InputError(f"routes.{name}: a model has this name already; a route needs one of its own")
        for target in route.names():
            if target not in known:
                raise InputError(
                    f"routes.{name}: {target!r} is neither a model nor a route here. {did_you_mean(target, known)}"
                )
        among = sorted(set(route.rule.names()) & set(routes))
        if among and route.rule.MODELS_ONLY:
            raise InputError(f"routes.{name}: {route.strategy} needs models as targets; {among[0]} is a route")
    for name in routes:
        _walk(routes, name, ())


def _walk(routes: Mapping[str, RouteConfig], name: str, way: tuple[str, ...]) -> None:
    if name in way:
        raise InputError(f"routes.{way[0]} leads to itself: {' -> '.join([*way, name])}")
    if name in routes:
        for target in routes[name].names():
            _walk(routes, target, (*way, name))


def classifiers_of(routes: Mapping[str, RouteConfig], models: Collection[str]) -> dict[str, ModelConfig]:
    """Models that routes ask for themselves and that nobody serves: they are loaded, but not shown."""
    wanted = {name for route in routes.values() for name in route.rule.classifiers()}
    return {name: ModelConfig() for name in sorted(wanted - set(models))}


def routed(service: Service) -> Layer:
    """The layer that finds what answers: the model whose name the request says, or what its route chooses."""

    def layer(question: Question, ask: Ask) -> AsyncIterator[Piece]:
        return service.router.ask(question, lambda served, turn: ask(question.to(served, turn)))

    return layer


async def ask_engine(
    service: Service,
    exchange: Exchange,
    capability: str,
    work: Callable[[Served, threading.Event], Iterator[Made]],
    prompts: Collection[Prompt] = ("",),
) -> list[Made]:
    """What ``work`` yields when it is given what answers ``exchange.model``; for calls that are not generation (embed, rerank, score).

    They go the way of all requests: routes (which see ``prompts``), retries, fallbacks, timeouts, gates. ``work`` runs in a thread, from its
    beginning for each try. ``exchange.served`` is what answered. Raises LuthierError; UnsupportedError when nothing asked has
    ``capability`` ("": ``work`` knows itself what it needs).
    """

    def begin(served: Served, turn: Turn) -> AsyncIterator[Made]:
        if capability:
            require(served.engine, capability)
        exchange.served = served
        return call(service, served, lambda stopped: work(served, stopped), turn=turn)

    question = Question(exchange, tuple(prompts), Sampling(max_new_tokens=1))
    return [made async for made in service.router.ask(question, begin)]
