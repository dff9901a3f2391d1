"""Which examples are shown."""

from __future__ import annotations

import random
from collections.abc import Sequence

from luthier.core.dataset import Example
from luthier.core.errors import InputError, NotFoundError

_SHORT_ID = 6


def draw_examples(train: Sequence[Example], wanted: int, seed: int, labels: Sequence[str] = ()) -> list[Example]:
    """``wanted`` different examples in random order, the same for the same seed and examples; with ``labels``, each in turn."""
    draw = random.Random(seed)
    pool = sorted(train, key=lambda e: e.id)
    draw.shuffle(pool)
    queues: dict[str, list[Example]] = {}
    for example in pool:
        queues.setdefault(str(example.target) if labels else "", []).append(example)
    order = sorted(queues)
    draw.shuffle(order)
    chosen: list[Example] = []
    while len(chosen) < wanted and any(queues.values()):
        for label in order:
            if queues[label] and len(chosen) < wanted:
                chosen.append(queues[label].pop())
    draw.shuffle(chosen)
    return chosen


def by_id(train: Sequence[Example], ids: Sequence[str], where: str) -> list[Example]:
    """The examples called ``ids`` (whole, or six letters and more of their beginning), in that order.

    Raises NotFoundError for one that is not there, InputError for a beginning that several have.
    """
    out = []
    for wanted in ids:
        found = [e for e in train if e.id == wanted]
        if not found and len(wanted) >= _SHORT_ID:
            found = [e for e in train if e.id.startswith(wanted)]
        if not found:
            raise NotFoundError(
                f"{where}: no example of the train split has the id {wanted!r}",
                hint="ids are in the records of an evaluation on that split: luthier eval ... --split train",
            )
        if len({e.id for e in found}) > 1:
            raise InputError(f"{where}: {len(found)} examples have an id that begins with {wanted!r}; give more of it")
        out.append(found[0])
    return out


def pairs(examples: Sequence[Example]) -> tuple[tuple[str, str], ...]:
    """(input, answer) of each."""
    return tuple((e.text, str(e.target)) for e in examples)
