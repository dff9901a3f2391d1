"""Two attempts side by side: when the first is slow to begin, a second is made, and the first piece decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Generic, TypeVar

from luthier.gateway.targets.attempts import Attempt

if TYPE_CHECKING:
    from luthier.gateway.targets.attempts import Asking

Made = TypeVar("Made")

_END = object()


class _Racer(Generic[Made]):
    """An attempt that runs by itself and puts aside what it makes (bounded, as an answer is)."""

    def __init__(self, attempt: Attempt[Made]) -> None:
        self.attempt = attempt
        self._made: asyncio.Queue[object] = asyncio.Queue()
        self.task = asyncio.ensure_future(self._run())
        self.head = asyncio.ensure_future(self._made.get())

    async def _run(self) -> None:
        try:
            async for each in self.attempt.pieces():
                self._made.put_nowait(each)
            self._made.put_nowait(_END)
        except Exception as error:  # noqa: BLE001 - raised where its pieces are read
            self._made.put_nowait(error)

    @property
    def failed(self) -> bool:
        """Whether an error came before any piece."""
        return isinstance(self.head.result(), Exception)

    async def rest(self) -> AsyncIterator[Made]:
        """Everything it makes. Raises its error."""
        found = self.head.result()
        while found is not _END:
            if isinstance(found, Exception):
                raise found
            yield found  # type: ignore[misc]
            found = await self._made.get()
        await self.task

    async def stop(self) -> None:
        """End it; what it was making is stopped."""
        for each in (self.head, self.task):
            each.cancel()
        await asyncio.gather(self.head, self.task, return_exceptions=True)


async def hedged(asking: Asking[Made], attempt: Attempt[Made], delay_s: float) -> AsyncGenerator[Made]:
    """The pieces of ``attempt``, or of a second one that is made after ``delay_s`` and has its first piece sooner.

    Raises the last error when both fail.
    """
    racers = [_Racer(attempt)]
    try:
        await asyncio.wait([racers[0].head], timeout=delay_s)
        if not racers[0].head.done():
            second = await asking.router.second(asking, attempt)
            if second is not None:
                racers.append(_Racer(second))
        running = list(racers)
        winner = running[0]
        while running:
            await asyncio.wait([each.head for each in running], return_when=asyncio.FIRST_COMPLETED)
            winner = next(each for each in running if each.head.done())
            if not winner.failed:
                break
            running.remove(winner)
        asking.leads(winner.attempt)
        for each in racers:
            if each is not winner:
                each.attempt.lost = True
                await each.stop()
        async for piece in winner.rest():
            yield piece
    finally:
        for each in racers:
            await each.stop()
