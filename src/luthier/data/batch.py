"""Batches: rows of like lengths together, so that little is padding.

Training takes ``plan``: shuffled steps of ``batch_size`` rows, each cut into micro-batches under a token budget. Inference takes
``order_by_length``. Both work on lengths alone; ``pad`` makes the tensors.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from luthier.core.errors import InputError

if TYPE_CHECKING:
    import torch

MicroBatch: TypeAlias = list[int]
"""Row indices that go through the model together, longest first."""

Step: TypeAlias = list[MicroBatch]
"""What one optimizer step sees."""

CHUNK_STEPS = 50
"""Rows are sorted by length within this many steps: wide enough for like lengths, narrow enough to stay random."""


@dataclass(frozen=True)
class Batch:
    """Padded rows: ``ids`` (rows, longest) int64, ``attention_mask`` of the same shape, 1 where a token is real."""

    ids: torch.Tensor
    attention_mask: torch.Tensor


def plan(
    lengths: Sequence[int],
    *,
    batch_size: int,
    max_tokens: int,
    seed: int,
    epoch: int,
    group: bool = True,
    rows: Sequence[int] | None = None,
    apart: Sequence[int] | None = None,
) -> list[Step]:
    """The steps of one epoch: every row exactly once (or those of ``rows``, as often as they stand there), the same for the same arguments.

    A step has ``batch_size`` rows (one step has the remainder). A micro-batch's padded size, rows x longest, is at most
    ``max_tokens``, except that one row alone may be longer. ``group=False`` keeps the shuffled order instead of joining like lengths.
    ``apart`` has a number for each row; rows with different ones are in different micro-batches.
    Raises InputError for an argument below 1.
    """
    _at_least_one(batch_size=batch_size, max_tokens=max_tokens)
    generator = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)) if rows is None else rows)
    generator.shuffle(order)
    if group:
        width = batch_size * CHUNK_STEPS
        chunks = [order[at : at + width] for at in range(0, len(order), width)]
        order = [row for chunk in chunks for row in sorted(chunk, key=lambda row: lengths[row])]
    steps = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    if group:
        generator.shuffle(steps)
    return [
        [
            batch
            for part in (_by_number(step, apart) if apart is not None else (step,))
            for batch in order_by_length([lengths[row] for row in part], max_tokens, names=part)
        ]
        for step in steps
    ]


def _by_number(rows: Sequence[int], numbers: Sequence[int]) -> list[list[int]]:
    return [[row for row in rows if numbers[row] == number] for number in sorted({numbers[row] for row in rows})]


def order_by_length(
    lengths: Sequence[int], max_tokens: int, *, max_rows: int | None = None, names: Sequence[int] | None = None
) -> list[MicroBatch]:
    """Rows sorted from long to short and cut where the padded size would pass ``max_tokens`` or the count ``max_rows``.

    The longest come first, so that memory runs out at once or not at all. ``names`` are the indices to return (default 0, 1, ...).
    """
    _at_least_one(max_tokens=max_tokens, max_rows=1 if max_rows is None else max_rows)
    names = range(len(lengths)) if names is None else names
    out: list[MicroBatch] = []
    longest = 0
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        full = not out or (len(out[-1]) + 1) * longest > max_tokens or len(out[-1]) == max_rows
        if full:
            out.append([])
            longest = lengths[at]
        out[-1].append(names[at])
    return out


def padding_share(lengths: Sequence[int], batches: Iterable[MicroBatch]) -> float:
    """The part of all computed tokens that is padding, 0 to 1."""
    real = padded = 0
    for rows in batches:
        real += sum(lengths[row] for row in rows)
        padded += len(rows) * max((lengths[row] for row in rows), default=0)
    return 1 - real / padded if padded else 0.0


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: str = "right") -> Batch:
    """Rows of ids as one tensor. ``side`` is where the padding goes: ``right`` for training, ``left`` before generation."""
    import torch

    if side not in ("left", "right"):
        raise InputError(f"side must be left or right; got {side!r}")
    longest = max(map(len, rows), default=0)
    ids, mask = [], []
    for row in rows:
        fill = longest - len(row)
        real, padding = list(row), [pad_id] * fill
        ids.append(real + padding if side == "right" else padding + real)
        mask.append([1] * len(row) + [0] * fill if side == "right" else [0] * fill + [1] * len(row))
    shape = (len(rows), longest)
    return Batch(
        torch.tensor(ids, dtype=torch.int64).reshape(shape), torch.tensor(mask, dtype=torch.int64).reshape(shape)
    )


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1; got {value}")
