"""Goodput: the share of requests that met every bound of a service level objective, and how fast the error budget is spent.

Burn rates over several windows follow Google's Site Reliability Workbook (2018), chapter 5: a rate of 1 spends exactly the budget that
``target`` leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.gateway.watch.watch import SloConfig

WINDOWS = {"5m": 300, "1h": 3600, "6h": 21_600, "3d": 259_200}
SLOT_S = 60
_SLOTS = WINDOWS["3d"] // SLOT_S + 1


class Goodput:
    """Counts requests that an objective is about: answers, and what failed by the server's fault or its load (429, 5xx). What a client got
    wrong (other 4xx) or did not wait for (499) says nothing of the server. A bound that an answer has no figure for counts as met.

    The last three days are kept a minute at a time.
    """

    def __init__(self, slo: SloConfig, *, now: Callable[[], float] = time.monotonic) -> None:
        self.slo = slo
        self.counted = 0
        self.met = 0
        self.missed = dict.fromkeys([name for name, _ in self._bounds()] + ["answered"], 0)
        self._now = now
        self._slots: list[tuple[int, int, int]] = [(-1, 0, 0)] * _SLOTS  # (minute, requests, those that met all bounds)

    def count(self, status: int, first_s: float | None, per_token_s: float | None, latency_s: float) -> None:
        """Count a request that is over."""
        if 400 <= status < 500 and status != 429:
            return
        seen = {"ttft_s": first_s, "tpot_s": per_token_s, "latency_s": latency_s}
        over = ["answered"] if status >= 400 else []
        if not over:
            over = [name for name, most in self._bounds() if (value := seen[name]) is not None and value > most]
        for name in over:
            self.missed[name] += 1
        self.counted += 1
        self.met += not over
        minute = int(self._now()) // SLOT_S
        at, requests, met = self._slots[minute % _SLOTS]
        before = (requests, met) if at == minute else (0, 0)
        self._slots[minute % _SLOTS] = (minute, before[0] + 1, before[1] + (not over))

    def share(self, window_s: float) -> float | None:
        """The share that met every bound in the last ``window_s`` seconds (whole minutes); None without a request."""
        now = int(self._now()) // SLOT_S
        first = now - int(window_s) // SLOT_S
        recent = [slot for slot in list(self._slots) if first < slot[0] <= now]
        requests = sum(slot[1] for slot in recent)
        return sum(slot[2] for slot in recent) / requests if requests else None

    def _bounds(self) -> list[tuple[str, float]]:
        named = (("ttft_s", self.slo.ttft_s), ("tpot_s", self.slo.tpot_s), ("latency_s", self.slo.latency_s))
        return [(name, most) for name, most in named if most is not None]
