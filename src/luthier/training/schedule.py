"""Learning-rate schedules: a warm-up, then a curve that falls, as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["cosine", "linear", "constant", "polynomial", "inverse_sqrt", "wsd"]

_TIMESCALE = 10_000
"""Steps of ``inverse_sqrt`` without a warm-up in which the rate falls to 0.71 of the peak, as in transformers."""


@dataclass(frozen=True)
class Curve:
    """What a schedule may need besides its name: the ``floor`` under the fall as a share of the peak, the ``power`` of ``polynomial``, and
    how long ``wsd`` falls (``decay``, a share of all steps below 1, else a number of steps)."""

    floor: float = 0.0
    power: float = 1.0
    decay: float = 0.1


_FALLS: dict[str, Callable[[float, Curve], float]] = {
    "cosine": lambda x, curve: 0.5 * (1.0 + math.cos(math.pi * x)),  # Loshchilov and Hutter 2017, eq. 5, one cycle
    "linear": lambda x, curve: 1.0 - x,
    "polynomial": lambda x, curve: (1.0 - x) ** curve.power,
    "wsd": lambda x, curve: (
        1.0 - math.sqrt(x)
    ),  # Haegele et al. 2024, section 3.2; the stages are those of Hu et al. 2024, eq. 1
}
"""From 1 to 0 while ``x`` goes from 0 to 1, the part of the fall that is done."""


def warmup_steps(total: int, warmup: float) -> int:
    """Steps of the warm-up: a share of ``total`` below 1, else a number of steps."""
    return min(total, round(total * warmup) if warmup < 1 else round(warmup))


def rate(
    step: float,
    *,
    total: int,
    peak: float,
    schedule: Schedule,
    warmup: float,
    curve: Curve = Curve(),
) -> float:
    """Learning rate of ``step`` (counted from 0, parts allowed) among ``total``.

    It rises linearly to ``peak`` over the warm-up and is ``peak`` at its end; no step has rate 0, so none is wasted.
    """
    rising = warmup_steps(total, warmup)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * (curve.floor + (1.0 - curve.floor) * _share(step - rising, total, rising, schedule, curve))


def _share(since: float, total: int, rising: int, schedule: Schedule, curve: Curve) -> float:
    """What is left of the peak, above the floor, ``since`` steps after the warm-up."""
    if schedule == "constant":
        return 1.0
    if schedule == "inverse_sqrt":  # Vaswani et al. 2017, eq. 3, scaled to the peak
        scale = rising or _TIMESCALE
        return math.sqrt(scale / (since + scale))
    falling = total - rising
    if schedule == "wsd":
        falling = max(1, min(falling, warmup_steps(total, curve.decay)))
    begins = total - rising - falling
    return _FALLS[schedule](max(0.0, since - begins) / max(1, falling), curve)
