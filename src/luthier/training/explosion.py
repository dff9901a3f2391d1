"""Notices that a loss explodes while it is still a number.

Level is the median of the first ten steps' losses, now that of the last ten (the lower of the two in the middle); the loss has exploded
when now is above ``max_rise`` times (level + 1). Medians let single bad batches pass. The one keeps losses that begin near zero from counting
as exploded at the first hard batch: with ``max_rise`` 3, cross-entropy that begins at 2 nats a token may rise to 9, one that begins at 0.1
to 3.3. Healthy training does not come near it, because a loss falls; what it cannot see is a run that diverges to a constant below the bound,
for which there are validations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median, median_low

from luthier.training.checkpoint import Position

WINDOW = 10


def bound(position: Position, max_rise: float) -> float:
    """What the losses of steps must not exceed; infinite in the first steps, and where ``max_rise`` is 0."""
    first = position.first_losses
    return max_rise * (abs(median(first)) + 1.0) if max_rise and len(first) == WINDOW else math.inf


def note(position: Position, loss: float, sources: Sequence[str], max_rise: float) -> bool:
    """Take the loss of a step over rows of ``sources`` in; returns whether it is suspect: above the bound by itself.

    ``position`` remembers the losses, and the first of the steps in the window that was suspect.
    """
    at, limit = position, bound(position, max_rise)
    if len(at.first_losses) < WINDOW:
        at.first_losses.append(loss)
    at.last_losses = [*at.last_losses, loss][-WINDOW:]
    suspect = loss > limit
    if suspect and not at.suspect_step:
        at.suspect_step, at.suspect_rows = at.step, list(sources)
    elif not any(each > limit for each in at.last_losses):
        at.suspect_step, at.suspect_rows = 0, []
    return suspect


def explosion(position: Position, max_rise: float) -> str:
    """What to say of a loss that has exploded; empty when it has not."""
    at, limit = position, bound(position, max_rise)
    now = median_low(at.last_losses) if at.last_losses else 0.0
    if now <= limit:
        return ""
    return (
        f"the loss has exploded: {now:.4g} over the last {WINDOW} steps, {median(at.first_losses):.4g} over the first; it first passed "
        f"{limit:.4g} at step {at.suspect_step}"
    )
