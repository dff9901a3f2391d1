"""What a route's strategy may use of the gateway (``routing._rule.Place``)."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.core.engine import GENERATE, SCORE, Sampling, ScoreRequest, require
from luthier.core.errors import EngineError, LuthierError, NotFoundError
from luthier.core.message import user
from luthier.gateway.backend import answers, call
from luthier.gateway.exchange import GONE, Exchange
from luthier.gateway.targets.attempts import Asking
from luthier.gateway.targets.gate import SHADOW, Turn
from luthier.gateway.targets.served import Price, Served

if TYPE_CHECKING:
    from luthier.gateway.calls import Piece
    from luthier.gateway.layers import Question
    from luthier.gateway.targets.router import Router
    from luthier.store.database import Store

_MOST_ASIDE = 64  # background tasks of all routes together
_LABEL_TOKENS = 32

logger = logging.getLogger("luthier.gateway")


class WorkPlace:
    """A route's place in the gateway."""

    def __init__(self, router: Router, route: str) -> None:
        self._router = router
        self.route = route

    @property
    def draw(self) -> random.Random:
        """Chance."""
        return self._router.draw

    @property
    def store(self) -> Store:
        """The service's store."""
        return self._router.service.store

    def now(self) -> float:
        """The router's clock."""
        return self._router.now()

    def served(self, name: str) -> Served | None:
        """What answers as ``name``."""
        target = self._router.registry.target(name)
        return target.served if target is not None else None

    def load_of(self, name: str) -> float:
        """Requests in hand of a target's best replica."""
        target = self._router.registry.target(name)
        replica = target.pick() if target is not None else None
        return replica.served.use.count if replica is not None else math.inf

    async def tokens(self, name: str, question: Question) -> tuple[int, bool]:
        """Tokens of the longest prompt."""
        served = self.served(name)
        if served is None:
            raise NotFoundError(f"{name!r}, a target of {self.route}, is not served any more")
        return await self._router.count(served, question.prompts)

    async def label(self, classifier: str, text: str, timeout_s: float) -> tuple[str, float | None]:
        """The likeliest label, and its share of all labels' likelihood."""
        target = self._router.registry.target(classifier, hidden=True)
        replica = target.pick() if target is not None else None
        if replica is None:
            raise EngineError(f"{classifier} cannot be asked at the moment")
        served = replica.served

        def work(stopped: threading.Event) -> Iterator[tuple[str, float | None]]:
            yield _label(served, text)

        try:
            async with asyncio.timeout(timeout_s):
                async for found in call(self._router.service, served, work, turn=Turn()):
                    return found
        except TimeoutError as error:
            raise EngineError(f"{classifier} said nothing for {timeout_s:g} s") from error
        raise EngineError(f"{classifier} said nothing")

    async def ask_aside(self, name: str, question: Question, note: Mapping[str, Any]) -> None:
        """Ask without anybody who waits. Does nothing when the target is busy."""
        service, asked = self._router.service, question.exchange
        target = self._router.registry.target(name)
        if target is not None and not (target.served.gate or service.gate).idle:
            return
        exchange = Exchange(
            asked.operation, name, asked.caller, asked.messages, dict(asked.parameters), asked.n, asked.session
        )
        exchange.priority = SHADOW
        copy = replace(question, exchange=exchange, stream=False)
        error: str | LuthierError = GONE
        try:
            async for piece in _asked(self._router, copy):
                exchange.note(piece)
            error = ""
        except LuthierError as raised:
            error = raised
        finally:
            exchange.say("shadow", **note, would_cost=exchange.cost)
            if exchange.served is not None:
                exchange.served = replace(exchange.served, price=Price())
            service.finish(exchange, error)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` in the background, unless very much runs there already."""
        tasks = self._router.aside
        if len(tasks) >= _MOST_ASIDE:
            work.close()
            logger.warning("route %s: %d tasks run in the background; one more was left out", self.route, len(tasks))
            return
        task = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._router.aside.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("route %s: a task in the background failed", self.route, exc_info=task.exception())


def _asked(router: Router, question: Question) -> AsyncIterator[Piece]:
    def begin(served: Served, turn: Turn) -> AsyncIterator[Piece]:
        return answers(router.service, question.to(served, turn))

    asking: Asking[Piece] = Asking(router, question, begin)
    return asking.pieces()


def _label(served: Served, text: str) -> tuple[str, float | None]:
    engine, labels = served.engine, served.labels
    if labels and SCORE in engine.info.capabilities:
        (row,) = engine.score([ScoreRequest(user(text), labels)])
        best = max(range(len(labels)), key=lambda index: row[index].logprob)
        total = sum(math.exp(each.logprob - row[best].logprob) for each in row)
        return labels[best], 1.0 / total
    require(engine, GENERATE)
    (answer,) = engine.generate([user(text)], Sampling(max_new_tokens=_LABEL_TOKENS))
    return answer.text.strip(), None
