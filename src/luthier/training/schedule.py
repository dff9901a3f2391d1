"""Learning-rate schedules: a warm-up, then a curve down to zero, as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]

_AFTER_WARMUP: dict[str, Callable[[float], float]] = {
    "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),  # Loshchilov and Hutter 2017, eq. 5, one cycle
    "linear": lambda x: 1.0 - x,
    "constant": lambda x: 1.0,
}


def warmup_steps(total: int, warmup: float) -> int:
    """Steps of the warm-up: a share of ``total`` below 1, else a number of steps."""
    return min(total, round(total * warmup) if warmup < 1 else round(warmup))


def rate(step: float, *, total: int, peak: float, schedule: Schedule, warmup: float) -> float:
    """Learning rate of ``step`` (counted from 0, parts allowed) among ``total``.

    It rises linearly to ``peak`` over the warm-up and is ``peak`` at its end; no step has rate 0, so none is wasted.
    """
    rising = warmup_steps(total, warmup)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * _AFTER_WARMUP[schedule]((step - rising) / max(1, total - rising))
