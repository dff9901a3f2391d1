"""Health checks: engines that can tell are asked from time to time whether they are well; those that are not get no requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from luthier.core.engine import Checkable, Engine, check_health
from luthier.core.errors import EngineError, LuthierError

if TYPE_CHECKING:
    from luthier.gateway.targets.registry import Registry, Replica, Target
    from luthier.gateway.workers import Workers

logger = logging.getLogger("luthier.gateway")


class HealthChecks:
    """Checks the replicas of a registry when they are due, side by side. Belongs to the event loop."""

    def __init__(self, registry: Registry, workers: Workers, now: Callable[[], float]) -> None:
        self._registry, self._workers, self._now = registry, workers, now
        self._running: dict[Replica, asyncio.Task[None]] = {}

    async def look(self) -> None:
        """Begin the checks that are due. A check that hangs holds up no other."""
        for target in self._registry.targets():
            for replica in target.replicas:
                last = replica.checked_at
                due = last is None or self._now() >= last + target.config.health.every_s
                if due and replica not in self._running and isinstance(replica.served.engine, Checkable):
                    replica.checked_at = self._now()
                    task = asyncio.ensure_future(self._check(target, replica))
                    self._running[replica] = task
                    task.add_done_callback(partial(self._ended, replica))

    def _ended(self, replica: Replica, task: asyncio.Task[None]) -> None:
        del self._running[replica]

    async def finish(self) -> None:
        """Wait for the checks that run."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _check(self, target: Target, replica: Replica) -> None:
        health = target.config.health
        replica.served.use.begin()
        try:
            async with asyncio.timeout(health.timeout_s + 1.0):
                await self._ask(replica.served.engine, health.timeout_s)
        except (LuthierError, TimeoutError) as error:
            said = error.message if isinstance(error, LuthierError) else f"no answer within {health.timeout_s:g} s"
            self._unwell(target, replica, said)
        else:
            if replica.problem:
                logger.warning("%s is well again", target.name)
            replica.failures, replica.problem = 0, ""
        finally:
            replica.served.use.end()

    async def _ask(self, engine: Engine, timeout_s: float) -> None:
        """Ask in a thread that nobody waits for when it hangs."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Exception | None] = loop.create_future()

        def tell(problem: Exception | None) -> None:
            if not answer.done():
                answer.set_result(problem)

        def work() -> None:
            problem: Exception | None = None
            try:
                check_health(engine, timeout_s)
            except LuthierError as error:
                problem = error
            except Exception as error:  # noqa: BLE001 - what an engine gets wrong here is a sign of its health, too
                problem = EngineError(f"its health check failed: {type(error).__name__}")
            try:
                loop.call_soon_threadsafe(tell, problem)
            except RuntimeError:
                logger.debug("a health check ended after the server")

        self._workers.run(work)
        problem = await answer
        if problem is not None:
            raise problem

    def _unwell(self, target: Target, replica: Replica, said: str) -> None:
        replica.failures += 1
        if replica.failures >= target.config.health.failures:
            if not replica.problem:
                logger.error("%s gets no requests until it is well: %s", target.name, said)
            replica.problem = said
