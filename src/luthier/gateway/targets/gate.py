"""The gate in front of an engine: so many calls at once, so many waiting, and nobody's crowd keeps the others out."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from luthier.gateway.api.wire import RequestError

ONLINE, BATCH, SHADOW = 0, -1, -2
"""Priorities: somebody waits for the answer; it may take hours; nobody waits."""

_MOST_RETRY_AFTER_S = 60


@dataclass(slots=True)
class Turn:
    """What a gate needs to know of a call. ``deadline``: when its answer is worth nothing any more (the gate's clock; None: never).

    ``begun`` is set, and ``let_in`` called, when the call is let in: until then nothing that happens to it is the engine's fault.
    """

    tenant: str = ""
    priority: int = ONLINE
    deadline: float | None = None
    begun: bool = False
    let_in: Callable[[], object] | None = None

    def begin(self) -> None:
        """The call is let in."""
        self.begun = True
        if self.let_in is not None:
            self.let_in()


@dataclass(slots=True, eq=False)
class _Waiter:
    turn: Turn
    let_in: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


_Crowd = OrderedDict[str, deque[_Waiter]]  # who waits, by tenant; the first tenant is next


class Gate:
    """At most ``running`` engine calls at once, and ``queue`` waiting for their turn.

    Calls of a higher priority go first. Within one priority tenants take turns, each tenant's calls in the order in which they came.
    When the queue is full, a newcomer displaces the last call of a lower priority, or of the tenant that has the most waiting, if that
    is more than the newcomer's own; otherwise the newcomer is refused. Belongs to one event loop.
    """

    def __init__(self, running: int, queue: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self.most_running = running
        self.most_waiting = queue
        self.running = 0
        self.waiting = 0
        self.shed = 0
        self.closed = False
        self._now = now
        self._crowds: dict[int, _Crowd] = {}
        self._mean_s: float | None = None  # how long a call takes; None before the first one ended

    @property
    def idle(self) -> bool:
        """Whether a call would be let in at once."""
        return self.running < self.most_running and not self.closed

    async def enter(self, turn: Turn | None = None) -> None:
        """Wait for a turn.

        Raises RequestError 429 when the queue is full or the wait would outlast ``turn.deadline``, 503 when the server is stopping.
        """
        turn = turn or Turn()
        if self.closed:
            raise RequestError("the server is stopping", status=503, code="stopping", headers={"Retry-After": "5"})
        if self.running < self.most_running:
            self.running += 1
            turn.begin()
            return
        wait_s = self._wait_s(turn)
        if turn.deadline is not None and self._mean_s is not None and self._now() + wait_s > turn.deadline:
            raise self._refusal(
                f"an answer would begin in about {wait_s:.1f} s, later than this request may take", wait_s, "too_late"
            )
        if self.waiting >= self.most_waiting:
            self._make_room(turn, wait_s)
        await self._wait(turn)

    def leave(self, took_s: float) -> None:
        """Give the turn back after ``took_s`` seconds of work."""
        self._mean_s = took_s if self._mean_s is None else self._mean_s + 0.2 * (took_s - self._mean_s)
        self._pass_on()

    def _pass_on(self) -> None:
        """The turn goes to who is next, or nobody has it."""
        while self._crowds:
            crowd = self._crowds[max(self._crowds)]
            tenant, queue = next(iter(crowd.items()))
            waiter = queue[0]
            crowd.move_to_end(tenant)
            self._remove(waiter)
            if not waiter.let_in.done():  # done: it gave up, and its task has not run since
                waiter.turn.begin()
                waiter.let_in.set_result(None)
                return
        self.running -= 1

    async def _wait(self, turn: Turn) -> None:
        waiter = _Waiter(turn)
        self._crowds.setdefault(turn.priority, OrderedDict()).setdefault(turn.tenant, deque()).append(waiter)
        self.waiting += 1
        try:
            await waiter.let_in
        except asyncio.CancelledError:
            if waiter.let_in.cancelled():
                self._remove(waiter)
            elif waiter.let_in.exception() is None:  # let in at the moment when its caller gave up
                self._pass_on()
            raise

    def _remove(self, waiter: _Waiter) -> None:
        turn = waiter.turn
        crowd = self._crowds.get(turn.priority, OrderedDict())
        queue = crowd.get(turn.tenant, deque())
        if waiter not in queue:
            return
        queue.remove(waiter)
        self.waiting -= 1
        if not queue:
            del crowd[turn.tenant]
        if not crowd:
            del self._crowds[turn.priority]

    def _make_room(self, turn: Turn, wait_s: float) -> None:
        """Send away who is worth less than ``turn``. Raises RequestError 429 when it is ``turn`` itself."""
        victim = self._victim(turn)
        if victim is None:
            raise self._full(wait_s)
        self._remove(victim)
        if not victim.let_in.done():
            victim.let_in.set_exception(self._full(self._wait_s(victim.turn)))

    def _victim(self, turn: Turn) -> _Waiter | None:
        if not self._crowds:
            return None
        lowest = min(self._crowds)
        crowd = self._crowds[lowest]
        largest = max(crowd.values(), key=len)
        if lowest < turn.priority:
            return largest[-1]
        own = len(crowd.get(turn.tenant, ()))
        return largest[-1] if lowest == turn.priority and len(largest) > own + 1 else None

    def _wait_s(self, turn: Turn) -> float:
        """About how long a newcomer waits, by how long calls took lately."""
        return (self._mean_s or 1.0) * (1 + self._ahead(turn) / self.most_running)

    def _ahead(self, turn: Turn) -> int:
        """How many of those that wait go before a newcomer: tenants take turns."""
        ahead = 0
        for priority, crowd in self._crowds.items():
            if priority == turn.priority:
                own = len(crowd.get(turn.tenant, ()))
                ahead += sum(
                    len(queue) if tenant == turn.tenant else min(len(queue), own + 1) for tenant, queue in crowd.items()
                )
            elif priority > turn.priority:
                ahead += sum(map(len, crowd.values()))
        return ahead

    def _full(self, wait_s: float) -> RequestError:
        return self._refusal(
            f"{self.running} requests are being answered and {self.waiting} wait, which is as many as this server takes",
            wait_s,
            "queue_full",
        )

    def _refusal(self, message: str, wait_s: float, code: str) -> RequestError:
        self.shed += 1
        seconds = max(1, math.ceil(wait_s))
        return RequestError(
            f"{message}; try again in about {seconds} s",
            status=429,
            code=code,
            headers={"Retry-After": str(min(seconds, _MOST_RETRY_AFTER_S))},
        )

    def tenants(self) -> Iterator[tuple[str, int]]:
        """Who waits with how many calls."""
        for crowd in self._crowds.values():
            for tenant, queue in crowd.items():
                yield tenant, len(queue)
