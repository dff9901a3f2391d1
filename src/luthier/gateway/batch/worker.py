"""The part of a server that works on batches: takes them from the store, a few at once, and holds them while it lives."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from luthier.core.errors import LuthierError, StoreError
from luthier.core.key import LOCAL
from luthier.gateway.batch.run import LEASE_S, Run, StoppedError
from luthier.store.batches import claim_batches, release, renew
from luthier.store.home import new_id

if TYPE_CHECKING:
    from luthier.gateway.service import Service

_RENEW_S = 3.0
_ACTIVE = 4

logger = logging.getLogger("luthier.gateway")


class BatchWorker:
    """Takes batches of the store, of every tenant whose keys this server asks for, and answers their lines. Belongs to the event loop."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.config = service.config.batch
        self.name = new_id("worker")
        self.runs: dict[str, Run] = {}
        self.turns = asyncio.Semaphore(self.config.concurrent)
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for batches."""
        if self.config.enabled:
            self._task = asyncio.get_running_loop().create_task(self._look())

    def wake(self) -> None:
        """There may be a new batch, or one that is to stop."""
        self._wake.set()

    async def stop(self) -> None:
        """Stop in the middle; what is written stays, and another worker goes on at once."""
        if self._task is None:
            return
        held, tasks = list(self.runs), [self._task, *(run.task for run in self.runs.values())]
        self._task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await asyncio.to_thread(release, self.service.store, self.name, held)
        except LuthierError as error:
            logger.error("batches are not released, others wait for %g s: %s", LEASE_S, error)
        self.runs.clear()

    def ended(self, run: Run) -> None:
        """A run is over."""
        self.runs.pop(run.batch.id, None)
        self.wake()

    async def _look(self) -> None:
        failing = False
        while True:
            try:
                await self._claim()
                failing = False
            except StoreError as error:
                if not failing:
                    logger.error("batches cannot be looked for; it is tried again every %g s: %s", _RENEW_S, error)
                failing = True
            except Exception:  # a fault of ours must not end all batches
                logger.exception("batches could not be looked for")
            self._wake.clear()
            try:
                async with asyncio.timeout(_RENEW_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _claim(self) -> None:
        store = self.service.store
        states = await asyncio.to_thread(renew, store, self.name, list(self.runs), time.time(), LEASE_S)
        for batch_id, run in self.runs.items():
            status = states.get(batch_id)
            if status is None:
                run.end(StoppedError(""))  # somebody else took it while this process was held up
            elif status == "cancelling":
                run.end(StoppedError.cancelled())
        free = _ACTIVE * self.config.concurrent - len(self.runs)
        if free <= 0:
            return
        tenants = None if self.service.keys.store is not None else (LOCAL,)
        claimed = await asyncio.to_thread(claim_batches, store, self.name, time.time(), LEASE_S, free, tenants)
        for batch in claimed:
            if batch.id not in self.runs:
                self.runs[batch.id] = Run(self, batch)
