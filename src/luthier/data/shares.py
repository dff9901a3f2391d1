"""Several sources in one training: how many rows of each an epoch has, and which.

Examples-proportional mixing with a limit and temperature mixing are Raffel et al. 2020, "Exploring the limits of transfer learning with a
unified text-to-text transformer", section 3.5.2. With n rows in a source, K the limit and T the temperature:

    proportional   p = min(n, K)         temperature   p = min(n, K) ** (1 / T)

``annealed`` is Stickland and Murray 2019, "BERT and PALs": p = n ** a with a = 1 - 0.8 e / (E - 1) in epoch e = 0 ... E - 1, so that large
sources come first and all weigh nearly the same in the end. ``dynamic`` follows the validation losses L of each source, by dynamic weight
averaging (Liu, Johns and Davison 2019, "End-to-end multi-task learning with attention", equation 7): p = exp(r / T) with
r = L(e - 1) / L(e - 2), and r = 1 in the first two epochs. What stops getting better is seen more.

All p are divided by their sum.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Sampling = Literal["proportional", "temperature", "weights", "equal", "annealed", "dynamic"]

_ANNEALED = 0.8


@dataclass(frozen=True)
class Mixture:
    """What decides the shares of the sources ``names``.

    ``weights`` are those of sampling ``weights``, one a source. ``cap`` is K, ``temperature`` T. ``epoch_rows`` is the size of an epoch;
    None: the rows of all sources, of each no more than ``cap``. ``epochs`` is how long annealing takes.
    """

    names: tuple[str, ...]
    sampling: Sampling = "proportional"
    weights: tuple[float, ...] = ()
    temperature: float = 2.0
    cap: int | None = None
    epoch_rows: int | None = None
    epochs: int = 1

    @property
    def moves(self) -> bool:
        """Whether the shares are others from epoch to epoch."""
        return self.sampling in ("annealed", "dynamic")

    def shares(
        self, sizes: Sequence[int], epoch: int = 0, losses: Sequence[Mapping[str, float]] = ()
    ) -> tuple[float, ...]:
        """The share of each source in ``epoch``; they sum to 1. ``sizes`` are rows of the sources, ``losses`` the validation loss of each
        source at the end of every epoch so far, which only ``dynamic`` reads."""
        counted = [float(min(size, self.cap or size)) for size in sizes]
        if self.sampling == "temperature":
            counted = [size ** (1 / self.temperature) for size in counted]
        elif self.sampling == "annealed":
            power = 1 - _ANNEALED * min(epoch / (self.epochs - 1), 1.0) if self.epochs > 1 else 1.0
            counted = [size**power for size in counted]
        elif self.sampling == "equal":
            counted = [1.0] * len(sizes)
        elif self.sampling == "weights":
            counted = list(self.weights)
        elif self.sampling == "dynamic":
            counted = [math.exp(self._slowness(name, losses[:epoch]) / self.temperature) for name in self.names]
        total = sum(counted)
        return tuple(each / total for each in counted)

    def _slowness(self, name: str, losses: Sequence[Mapping[str, float]]) -> float:
        if len(losses) < 2 or losses[-2][name] <= 0:
            return 1.0
        return losses[-1][name] / losses[-2][name]

    def rows(self, sizes: Sequence[int]) -> int:
        """Rows of one epoch."""
        return self.epoch_rows or sum(min(size, self.cap or size) for size in sizes)

    def counts(
        self, sizes: Sequence[int], epoch: int = 0, losses: Sequence[Mapping[str, float]] = ()
    ) -> tuple[int, ...]:
        """Rows of each source in ``epoch``: its share by largest remainder, and at least one where the epoch has that many rows."""
        rows = self.rows(sizes)
        exact = [share * rows for share in self.shares(sizes, epoch, losses)]
        out = [int(each + 1e-9) for each in exact]
        for at in sorted(range(len(out)), key=lambda at: (round(out[at] - exact[at], 9), at))[: rows - sum(out)]:
            out[at] += 1
        for at, count in enumerate(out):
            if not count and rows >= len(out):
                out[out.index(max(out))] -= 1
                out[at] = 1
        return tuple(out)

    def draw(
        self, sizes: Sequence[int], *, seed: int, epoch: int, losses: Sequence[Mapping[str, float]] = ()
    ) -> list[int]:
        """The rows of ``epoch`` as places in all sources one after another: the same for the same arguments.

        A source is shuffled and gone through, over as many epochs as that takes, before any of its rows comes again; then it is shuffled
        anew.
        """
        done = [0] * len(sizes)
        for before in range(epoch):
            for at, count in enumerate(self.counts(sizes, before, losses)):
                done[at] += count
        out: list[int] = []
        first = 0
        for at, count in enumerate(self.counts(sizes, epoch, losses)):
            out += [first + row for row in stream(sizes[at], done[at], count, f"{seed}/{self.names[at]}")]
            first += sizes[at]
        return out


def stream(size: int, start: int, count: int, seed: str) -> list[int]:
    """``count`` rows of an endless sequence of shuffled passes over ``size`` rows, from place ``start`` on."""
    out: list[int] = []
    while count > 0:
        turn, place = divmod(start, size)
        order = list(range(size))
        random.Random(f"{seed}/{turn}").shuffle(order)
        taken = order[place : place + count]
        out += taken
        start, count = start + len(taken), count - len(taken)
    return out
