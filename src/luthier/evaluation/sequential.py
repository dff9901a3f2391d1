"""Watching two rates while they are being observed: a test that may be looked at after every observation.

A test that is looked at again and again finds a difference sooner or later, whether there is one or not. An e-process does not: under the
hypothesis it exceeds 1 / alpha at any time ever with a probability of at most alpha (Ville, 1939).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_HORIZON = (
    200.0  # observations after which an old one counts 1/e: what was true long ago must not hide what is true now
)


@dataclass
class _Rate:
    """A recent rate: observations are forgotten exponentially. Half an observation of each kind is known beforehand."""

    seen: float = 0.0
    bad: float = 0.0

    def add(self, count: int, bad: int) -> None:
        keep = math.exp(-count / _HORIZON)
        self.seen, self.bad = self.seen * keep + count, self.bad * keep + bad

    @property
    def value(self) -> float:
        return (self.bad + 0.5) / (self.seen + 1.0)


@dataclass
class WorseRate:
    """Whether bad outcomes come more often with the new system than with the old one, observed side by side.

    The hypothesis is that they do not. Outcomes are taken in blocks of at least one of each system. A block multiplies the evidence by the
    two-sample e-variable of Turner, Ly and Grünwald (2024, "Generic E-variables for exact sequential k-sample tests that allow for optional stopping"), whose alternative rates
    are estimated from the blocks before; it holds for every pair of rates with new <= old, one block's rates may differ from the next
    one's, and so the old rate need not be known or stay. So that a change that comes late is found, too, evidence is gathered from every
    block on and mixed with weights 1 / (j (j + 1)), which keeps it an e-process (as in Shin, Ramdas and Rinaldo, 2024, "E-detectors").

    ``margin`` is the least difference of rates that is looked for: smaller ones take longer to find, never easier.
    """

    margin: float = 0.02
    blocks: int = 0
    _evidence: float = 0.0  # of all starts so far, weighted; the starts to come hold 1 / (blocks + 1)
    _block: tuple[int, int, int, int] = (0, 0, 0, 0)  # old, bad ones of them, new, bad ones of them
    _old: _Rate = field(default_factory=_Rate)
    _new: _Rate = field(default_factory=_Rate)
    totals: tuple[int, int, int, int] = (0, 0, 0, 0)

    def old(self, bad: bool) -> None:
        """One more outcome of the old system."""
        self._add(1, int(bad), 0, 0)

    def new(self, bad: bool) -> None:
        """One more outcome of the new system."""
        self._add(0, 0, 1, int(bad))

    @property
    def evidence(self) -> float:
        """The e-value against the hypothesis."""
        return self._evidence + 1.0 / (self.blocks + 1)

    def rejects(self, alpha: float) -> bool:
        """Whether the new system's rate is higher, with a chance of at most ``alpha`` of ever saying so when it is not."""
        return self.evidence >= 1.0 / alpha

    @property
    def rates(self) -> tuple[float, float]:
        """(share of bad outcomes of the old system, of the new one), over all observations; 0 where there are none."""
        old, old_bad, new, new_bad = self.totals
        return old_bad / max(old, 1), new_bad / max(new, 1)

    def _add(self, *more: int) -> None:
        self.totals = tuple(a + b for a, b in zip(self.totals, more, strict=True))  # type: ignore[assignment]
        self._block = tuple(a + b for a, b in zip(self._block, more, strict=True))  # type: ignore[assignment]
        old, old_bad, new, new_bad = self._block
        if not old or not new:
            return
        self.blocks += 1
        start = 1.0 / (self.blocks * (self.blocks + 1))
        self._evidence = min((self._evidence + start) * self._factor(), 1e300)
        self._old.add(old, old_bad)
        self._new.add(new, new_bad)
        self._block = (0, 0, 0, 0)

    def _factor(self) -> float:
        """The e-variable of the block, with rates that are known from earlier ones."""
        old, old_bad, new, new_bad = self._block
        first = min(self._old.value, 1.0 - self.margin - 1e-6)
        second = min(max(self._new.value, first + self.margin), 1.0 - 1e-6)
        both = (old * first + new * second) / (old + new)
        return math.exp(
            old_bad * math.log(first / both)
            + (old - old_bad) * math.log((1.0 - first) / (1.0 - both))
            + new_bad * math.log(second / both)
            + (new - new_bad) * math.log((1.0 - second) / (1.0 - both))
        )
