"""Rollouts in the loop: experience from the prompts of a step, and the optimizer updates that are made of it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from luthier.core.errors import TrainingError
from luthier.data.batch import order_by_length
from luthier.models.rollout import answering_mode
from luthier.objectives._rollout import Experience, Moment, Rollout

Update = list[list[Any]]
"""The micro-batches of one optimizer update, each a list of rows."""


def play(module: nn.Module, rollout: Rollout, rows: Sequence[Any], moment: Moment) -> Experience:
    """The rollout of one step, with ``module`` in eval mode and without gradients. Raises TrainingError when nothing comes of it."""
    with answering_mode(module):
        found = rollout.play(rows, moment)
    if not found.rows:
        raise TrainingError(f"the rollout of step {moment.step + 1} gave nothing to learn from ({len(rows)} prompts)")
    return found


def updates(experience: Experience, moment: Moment, *, whole: bool = False) -> Iterator[Update]:
    """The updates of a step: each epoch sees every row once, in an order of its own, in ``minibatches`` parts of nearly one size.

    ``whole``: an update is one micro-batch.
    """
    count = len(experience.rows)
    parts = min(experience.minibatches, count)
    for epoch in range(experience.epochs):
        order = list(range(count))
        if parts > 1:
            random.Random(f"{moment.seed}/{epoch}").shuffle(order)
        for part in range(parts):
            chosen = order[part * count // parts : (part + 1) * count // parts]
            batches = [chosen] if whole else in_batches(experience.rows, moment.max_tokens, chosen)
            yield [[experience.rows[i] for i in batch] for batch in batches]


def in_batches(rows: Sequence[Any], max_tokens: int, chosen: Sequence[int] | None = None) -> list[list[int]]:
    """Micro-batches of like lengths under the token budget, as places in ``rows``."""
    places = range(len(rows)) if chosen is None else chosen
    return order_by_length([rows[i].length for i in places], max_tokens, names=places)


class Means:
    """Means of the metrics of several rollouts, each counted by its prompts."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, metrics: Mapping[str, float], prompts: int) -> None:
        """Take those of one rollout in."""
        for name, value in metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value * prompts, count + prompts)

    def means(self) -> dict[str, float]:
        """By name."""
        return {name: total / count for name, (total, count) in self._sums.items()}
