"""From the name that a request asks to what answers it: models, routes over them, and routes over routes."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from luthier.core import catalog
from luthier.core.errors import LuthierError, NotFoundError, UnsupportedError
from luthier.gateway.access.quota import tokens_of
from luthier.gateway.routing._rule import Choice, Outcome, Rule
from luthier.gateway.targets.attempts import Asking, Attempt, Begin, Candidate
from luthier.gateway.targets.place import WorkPlace
from luthier.gateway.targets.policy import Policy
from luthier.gateway.targets.registry import Registry, Target
from luthier.gateway.targets.served import Served, most_tokens_of

if TYPE_CHECKING:
    from luthier.core.message import Prompt
    from luthier.gateway.layers import Question
    from luthier.gateway.service import Service
    from luthier.gateway.targets.routes import RouteConfig

Made = TypeVar("Made")

_HEDGES_SAVED = 3.0  # hedges that a quiet time may save up for a busy one

logger = logging.getLogger("luthier.gateway")


@dataclass(eq=False)
class Route:
    """A name that clients ask, and how what answers it is chosen."""

    name: str
    config: RouteConfig
    rule: Rule

    @cached_property
    def says_nothing(self) -> bool:
        """Whether its targets' own policies hold unchanged."""
        return not (self.config.retries or self.config.hedge or self.config.first_token_timeout_s)

    def as_dict(self) -> dict[str, Any]:
        """For /health."""
        state = dict(self.rule.state()) if self.rule.state is not None else {}
        return {"strategy": self.config.strategy, "targets": list(self.config.names())} | (
            {"state": state} if state else {}
        )


class Router:
    """Routes over the models of a service. ``now``, ``sleep`` and ``draw`` are its clock, its pauses and its chance. Belongs to the event loop."""

    def __init__(
        self,
        service: Service,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        draw: random.Random | None = None,
    ) -> None:
        self.service = service
        self.now, self.sleep, self.draw = now, sleep, draw or random.Random()
        self.routes: dict[str, Route] = {}
        self.aside: set[asyncio.Task[None]] = set()
        self._hedges: dict[str, float] = {}

    @property
    def registry(self) -> Registry:
        """The models."""
        return self.service.models

    def built(self, configs: Mapping[str, RouteConfig]) -> dict[str, Route]:
        """Routes for ``configs``; those that have not changed go on with what they have seen."""
        out = {}
        for name, config in configs.items():
            known = self.routes.get(name)
            if known is not None and known.config == config:
                out[name] = known
                continue
            entry = catalog.load("routes", config.strategy)
            out[name] = Route(name, config, entry(config.rule, WorkPlace(self, name)))
        return out

    # ---- names

    def reachable(self, name: str) -> list[Target]:
        """Every target that a request for ``name`` may come to."""
        route = self.routes.get(name)
        if route is None:
            target = self.registry.target(name, hidden=True)
            return [target] if target is not None else []
        found = {id(each): each for arm in route.config.names() for each in self.reachable(arm)}
        return list(found.values())

    def refuse(self, name: str, question: Question) -> NoReturn:
        """Raise RequestError 404 with the names that the caller may ask."""
        caller = question.exchange.caller
        self.service.refuse_model(name, [each for each in self.service.names() if caller.sees(each)])

    # ---- asking

    def ask(self, question: Question, begin: Begin[Made]) -> AsyncIterator[Made]:
        """What the first target that can answers. Raises LuthierError."""
        return Asking(self, question, begin).pieces()

    async def plan(self, asking: Asking[Any]) -> AsyncGenerator[Candidate]:
        """The candidates of a request, in the order in which they are to be tried; later ones are chosen when they are needed."""
        question = asking.question
        name = question.exchange.model
        route = self.routes.get(name)
        if route is None:
            target = self.registry.target(name)
            if target is None:
                self.refuse(name, question)
            yield Candidate(target.name, target.policy)
            return
        question.exchange.route = name
        async with aclosing(self._expand(route, asking, (), None)) as candidates:
            async for each in candidates:
                yield each

    async def _expand(
        self, route: Route, asking: Asking[Any], path: tuple[tuple[Route, str, bool], ...], deadline: float | None
    ) -> AsyncGenerator[Candidate]:
        began = self.now()
        ends = [deadline, None if route.config.timeout_s is None else began + route.config.timeout_s]
        deadline = min((each for each in ends if each is not None), default=None)
        choice = await route.rule.choose(asking.question)
        if choice.after is not None:
            asking.question.exchange.finishers.append(choice.after)
        for place, arm in enumerate(dict.fromkeys([*choice.names, *route.config.fallbacks])):
            blamed, way = asking.blamed, (*path, (route, arm, place == 0))
            inner = self.routes.get(arm)
            if inner is not None:
                async with aclosing(self._expand(inner, asking, way, deadline)) as candidates:
                    async for each in candidates:
                        policy = each.policy if route.says_nothing else each.policy.under(route.config, whole=False)
                        yield replace(each, policy=policy, note={**choice.note, **each.note})
            else:
                yield self._candidate(arm, way, choice, place, deadline)
            if place == 0 and route.rule.heard is not None:
                good = False if asking.blamed > blamed else None
                route.rule.heard(arm, Outcome(good, self.now() - began, None, 0.0))

    def _candidate(
        self, arm: str, path: tuple[tuple[Route, str, bool], ...], choice: Choice, place: int, deadline: float | None
    ) -> Candidate:
        target, route = self.registry.target(arm), path[-1][0]
        policy = target.policy if target is not None else Policy()
        if not route.says_nothing:
            policy = policy.under(route.config, whole=False)
        name = target.name if target is not None else arm
        return Candidate(
            name, policy, path, choice.reason if place == 0 else "the ones before it failed", choice.note, deadline
        )

    def answered(self, asking: Asking[Any]) -> None:
        """A request has its answer: the routes that led to it are told."""
        candidate, exchange = asking.answered, asking.question.exchange
        for route, arm, first in candidate.path if candidate is not None else ():
            if not first:
                continue
            if route.rule.heard is not None:
                route.rule.heard(arm, Outcome(True, asking.answer_s, asking.first_s, exchange.cost))
            if route.rule.finished is not None:
                exchange.finishers.append(partial(route.rule.finished, arm))

    def failed(self, asking: Asking[Any], candidate: Candidate) -> None:
        """An answer broke off when it was no longer possible to ask another."""
        for route, arm, first in candidate.path:
            if first and route.rule.heard is not None:
                route.rule.heard(arm, Outcome(False, 0.0, None, 0.0))

    # ---- tokens

    async def count(self, served: Served, prompts: tuple[Prompt, ...]) -> tuple[int, bool]:
        """(tokens of the longest of ``prompts`` as a model reads them, whether they were counted and not estimated)."""
        if served.count is not None:
            counted = await asyncio.to_thread(lambda: max(map(served.count, prompts)))  # type: ignore[arg-type]
            if counted:
                return counted, True
        texts = [prompt if isinstance(prompt, str) else "".join(turn.content for turn in prompt) for prompt in prompts]
        return max(map(tokens_of, texts)), False

    async def too_many_tokens(self, served: Served, question: Question) -> tuple[int, bool]:
        """(tokens, whether they were counted) of a prompt that leaves no room for an answer; (0, True) when all do.

        A text has at most as many tokens as bytes, so that most prompts need not be counted.
        """
        limit = served.context_length
        whole = question.exchange.operation in ("embedding", "rerank")  # those engines cut what is too long
        if not limit or whole or all(most_tokens_of(prompt) < limit for prompt in question.prompts):
            return 0, True
        tokens, counted = await self.count(served, question.prompts)
        return (tokens, counted) if tokens >= limit else (0, True)

    # ---- hedges

    def hedge_after_s(self, attempt: Attempt[Any]) -> float | None:
        """After how long a second attempt is made beside this one; None: there is none."""
        hedge, target = attempt.candidate.policy.hedge, attempt.target
        if hedge is None:
            return None
        saved = self._hedges.get(target.name, 1.0)
        self._hedges[target.name] = min(saved + hedge.most_share, _HEDGES_SAVED)
        return hedge.after_s if hedge.after_s is not None else target.firsts.quantile(0.95)

    async def second(self, asking: Asking[Made], first: Attempt[Made]) -> Attempt[Made] | None:
        """The attempt beside a slow one: at another replica, else at the next target of the route, else once more at the same."""
        target = first.target
        if self._hedges.get(target.name, 0.0) < 1.0:
            return None
        candidate, replica = first.candidate, target.pick([first.replica])
        if replica is None:
            found = await asking.next_usable()
            if found is not None:
                candidate, target = found
            replica = target.pick()
        if replica is None or not (replica.served.gate or self.service.gate).idle:
            return None  # a server that is busy is not helped by asking it twice
        self._hedges[first.target.name] -= 1.0
        return Attempt(asking, candidate, target, replica, "hedge")

    # ---- the background

    async def tick(self) -> None:
        """What routes do about once a second."""
        for route in list(self.routes.values()):
            if route.rule.tick is not None:
                try:
                    await route.rule.tick()
                except LuthierError as error:
                    logger.error("route %s: %s", route.name, error)

    async def reset(self, name: str, actor: str) -> None:
        """Let a route begin anew. Raises NotFoundError, UnsupportedError for one that keeps no state."""
        route = self.routes.get(name)
        if route is None:
            raise NotFoundError(f"route {name!r} is not known. Here are: {', '.join(self.routes) or 'none'}")
        if route.rule.reset is None:
            raise UnsupportedError(f"route {name} ({route.config.strategy}) keeps nothing that could be reset")
        await route.rule.reset(actor)
