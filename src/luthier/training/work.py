"""What a training works on: rows, how they become batches, and what is minimised; the plan of its steps, and the mean loss over all of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from luthier.core.errors import DataError
from luthier.data.batch import Step, plan
from luthier.objectives._loss import Loss
from luthier.objectives._rollout import Moment, Rollout
from luthier.training.config import TrainConfig
from luthier.training.play import Means, in_batches
from luthier.training.sources import Layout
from luthier.training.tally import Tally


class Row(Protocol):
    """What the loop must know of a row."""

    @property
    def length(self) -> int:
        """Tokens that it costs."""

    @property
    def weight(self) -> int:
        """Tokens or examples that the loss is a mean over."""

    @property
    def source(self) -> str:
        """``file:line``, for errors."""


@dataclass(frozen=True)
class Work:
    """What to minimise: ``loss(collate(rows))``, a mean over the rows' weights.

    ``whole``: the loss of a row depends on the other rows of its step, so ``collate`` gets them all at once, not a micro-batch, and it is
    the loss that keeps its forwards within the token budget. ``rollout``: rows are prompts, and what is minimised is the loss of what the
    rollout makes of a step's prompts. ``layout`` says where rows of several sources lie and how they are drawn. ``figures``:
    metrics of a whole set from the outcomes of its losses. ``apart``: each source has a loss of its own, a mean over what that counts, and
    counts in a step by its rows.
    """

    rows: Sequence[Row]
    collate: Callable[[Sequence[Any]], Any]
    loss: Callable[[Any], Loss]
    whole: bool = False
    rollout: Rollout | None = None
    layout: Layout | None = None
    figures: Callable[[Sequence[Any]], Mapping[str, float]] | None = None
    apart: bool = False

    @property
    def joined(self) -> bool:
        """Whether the rows of a step go on together."""
        return self.whole or self.rollout is not None

    def plan(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        max_tokens: int,
        seed: int,
        epoch: int,
        losses: Sequence[Mapping[str, float]] = (),
    ) -> list[Step]:
        """The steps of ``epoch`` over rows of ``lengths``: the same for the same arguments. ``losses`` are those of the sources in the epochs
        before, which their shares may follow."""
        shape: dict[str, Any] = {"batch_size": batch_size, "max_tokens": max_tokens, "seed": seed, "epoch": epoch}
        if self.layout is not None:
            steps = self.layout.plan(lengths, **shape, group=not self.joined, losses=losses)
        else:
            steps = plan(lengths, **shape, group=not self.joined)
        return [[[row for rows in step for row in rows]] for step in steps] if self.joined else steps

    def source_of(self, rows: Sequence[int]) -> str | None:
        """The name of the source that a micro-batch of several sources is of."""
        if self.layout is None:
            return None
        return self.layout.names[self.layout.numbers[rows[0]]]

    def by_source(self) -> Iterator[tuple[str, Work]]:
        """The rows of each source, as work of their own, in order."""
        start = 0
        for name, size in zip(self.layout.names, self.layout.sizes, strict=True) if self.layout is not None else ():
            yield name, replace(self, rows=self.rows[start : start + size], layout=None)
            start += size


def require_weight(rows: Sequence[Row], purpose: str) -> None:
    """Raise DataError when the loss counts nothing in any of the rows."""
    if rows and not any(row.weight for row in rows):
        shown = ", ".join(sources_of(rows[:5])) + (" …" if len(rows) > 5 else "")
        raise DataError(
            f"nothing to learn from: all labels of the {len(rows)} {purpose} rows are masked, so that no token bears loss ({shown})",
            hint="luthier data render FILE --model MODEL --mask shows what bears loss: in chats what the assistant says, otherwise the answer",
        )


def mean_loss(work: Work, *, max_tokens: int, batch_size: int = 64) -> dict[str, float]:
    """Loss and the objective's metrics over all rows, without gradients: ``{"loss": ..., "accuracy": ...}``, and of each source.

    Of prompts the means over what a rollout makes of them, with the same random numbers at each call.
    """
    tally, played = Tally(), Means()
    outcomes: list[Any] = []
    with torch.inference_mode():
        for name, part in [(None, work)] if work.layout is None else work.by_source():
            lengths = lengths_of(part.rows)
            plan = part.plan(lengths, batch_size=batch_size, max_tokens=max_tokens, seed=0, epoch=0)
            for number, step in enumerate(plan):
                for indices in step:
                    rows: Sequence[Any] = [part.rows[i] for i in indices]
                    batches = [list(range(len(rows)))]
                    if work.rollout is not None:
                        experience = work.rollout.play(rows, Moment(number, 0, max_tokens, training=False))
                        played.add(experience.metrics, len(rows))
                        rows = experience.rows
                        batches = [list(range(len(rows)))] if work.whole else in_batches(rows, max_tokens)
                    for batch in batches:
                        if not any(rows[i].weight for i in batch):
                            continue
                        loss = work.loss(work.collate([rows[i] for i in batch]))
                        tally.add(loss, name)
                        outcomes += loss.outcomes
    if work.apart and work.layout is not None:
        return tally.means(dict.fromkeys(work.layout.names, 1)) | (dict(work.figures(outcomes)) if work.figures else {})
    over_all = dict(work.figures(outcomes)) if work.figures is not None and outcomes else {}
    return tally.means() | played.means() | over_all


def lengths_of(rows: Sequence[Row]) -> Sequence[int]:
    """Length of each row; rows that lie on disk know them all."""
    known: Sequence[int] | None = getattr(rows, "lengths", None)
    return [row.length for row in rows] if known is None else known


def planned_steps(config: TrainConfig, lengths: Sequence[int], steps_per_epoch: int) -> tuple[int, str]:
    """How many steps the schedule is made for, and which setting says so. ``lengths`` are those of an epoch's rows. ``max_tokens`` is exact
    only on average here: steps differ in tokens; training still never passes it."""
    limits = {"epochs": math.ceil(config.epochs * steps_per_epoch - 1e-9)}
    if config.max_steps is not None:
        limits["max_steps"] = config.max_steps
    if config.max_tokens is not None:
        limits["max_tokens"] = max(1, math.ceil(config.max_tokens * steps_per_epoch / max(1, sum(lengths))))
    name = min(limits, key=lambda key: (limits[key], key == "epochs"))
    return limits[name], name


def sources_of(rows: Sequence[Row]) -> list[str]:
    """Where rows come from, for errors."""
    return [row.source or "without a source" for row in rows]
