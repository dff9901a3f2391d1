"""Circuit breakers: a target that fails is left alone for a while, and then tried with care."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from luthier.gateway.targets.policy import Breaking

State = Literal["closed", "open", "half_open"]
_SLICES = 10  # of the window: outcomes are forgotten a slice at a time


@dataclass
class Breaker:
    """The circuit in front of one target. ``now`` is a clock in seconds. Belongs to the event loop.

    ``enter`` gives a request its permit, which ``leave`` must get back exactly once. Permits of an earlier state of the circuit say nothing
    of the present one: a request that was let through before the circuit opened neither closes nor opens it again.
    """

    config: Breaking
    now: Callable[[], float]
    opened: int = 0
    _opened_at: float | None = None
    _permit: int = 1  # of the present state
    _probing: int = 0
    _proven: int = 0
    _slices: deque[tuple[int, int, int]] = field(default_factory=deque)  # (number of the slice, good, failed)

    @property
    def state(self) -> State:
        """Closed lets requests through, open none, half open as many as probe."""
        if self._opened_at is None:
            return "closed"
        return "half_open" if self.now() >= self._opened_at + self.config.open_s else "open"

    @property
    def closes_in_s(self) -> float:
        """Seconds until an open circuit lets a request through again, else 0."""
        return 0.0 if self._opened_at is None else max(0.0, self._opened_at + self.config.open_s - self.now())

    def ready(self) -> bool:
        """Whether ``enter`` would let a request through."""
        return self._opened_at is None or (self.state == "half_open" and self._probing < self.config.probes)

    def enter(self) -> int | None:
        """Let a request through; None: not now."""
        if not self.ready():
            return None
        if self._opened_at is not None:
            self._probing += 1
        return self._permit

    def leave(self, permit: int, good: bool | None) -> None:
        """How a request ended. None: that says nothing of the target (its caller left, or asked what cannot be answered)."""
        if permit != self._permit:
            return
        if self._opened_at is None:
            if good is not None:
                self._count(good)
            if good is False and self._broken():
                self._turn(self.now())
            return
        self._probing -= 1
        if good is False:
            self._turn(self.now())
        elif good:
            self._proven += 1
            if self._proven >= self.config.probes:
                self._turn(None)

    def counts(self) -> tuple[int, int]:
        """(requests in the window, how many of them failed)."""
        self._forget()
        failed = sum(each[2] for each in self._slices)
        return failed + sum(each[1] for each in self._slices), failed

    def _turn(self, opened_at: float | None) -> None:
        """Open the circuit, or close it (None)."""
        self.opened += opened_at is not None
        self._opened_at = opened_at
        self._permit += 1
        self._probing = self._proven = 0
        self._slices.clear()

    def _broken(self) -> bool:
        requests, failed = self.counts()
        return requests >= self.config.least and failed >= self.config.error_rate * requests

    def _count(self, good: bool) -> None:
        number = self._slice()
        if not self._slices or self._slices[-1][0] != number:
            self._forget()
            self._slices.append((number, 0, 0))
        _, ok, failed = self._slices[-1]
        self._slices[-1] = (number, ok + good, failed + (not good))

    def _forget(self) -> None:
        oldest = self._slice() - _SLICES
        while self._slices and self._slices[0][0] <= oldest:
            self._slices.popleft()

    def _slice(self) -> int:
        return int(self.now() / self.config.window_s * _SLICES)
