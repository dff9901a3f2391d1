"""Things that an answer lists (entities, relations, events) against those of the target: each is a tuple, right when it is exactly there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Literal, TypeAlias

import numpy as np

from luthier.core.catalog import EntryConfig
from luthier.scorers import _labels
from luthier.scorers._score import Answer, Floats, Score, Target

Found: TypeAlias = dict[str, set[Hashable]]
"""Type -> what was found of it."""


class Averaged(EntryConfig):
    """``average``: ``micro`` counts over all types together, ``macro`` is the mean over types, ``weighted`` weighs them by how many the targets
    have. ``measure`` is what is reported."""

    average: Literal["micro", "macro", "weighted"] = "micro"
    measure: Literal["f1", "precision", "recall"] = "f1"


Pair: TypeAlias = Callable[[Answer, Target], tuple[Found, Found, str]]
"""(wanted, given, why the answer could not be read)."""


def scored(wanted: Found, given: Found, problem: str) -> Score:
    """F1 of one example, 1.0 where there is nothing to find and nothing was found; the detail counts, and names what is wrong."""
    gold, said = _flat(wanted), _flat(given)
    right = len(gold & said)
    value = 2 * right / (len(gold) + len(said)) if gold or said else 1.0
    detail: dict[str, object] = {"right": right, "wanted": len(gold), "given": len(said)}
    return Score(value, detail | ({"reason": problem} if problem else {}))


def _flat(found: Found) -> set[tuple[str, Hashable]]:
    return {(kind, each) for kind, all_of in found.items() for each in all_of}


def sums(rows: Sequence[tuple[Found, Found]]) -> Floats:
    """Of each row right, wanted and given of each type in turn, for ``_labels.average``."""
    kinds = sorted({kind for wanted, given in rows for kind in (*wanted, *given)})
    out = np.zeros((len(rows), 3, len(kinds)))
    for row, (wanted, given) in enumerate(rows):
        for at, kind in enumerate(kinds):
            gold, said = wanted.get(kind, set()), given.get(kind, set())
            out[row, :, at] = len(gold & said), len(gold), len(said)
    return out.reshape(len(rows), -1)


def combine(totals: Floats, config: Averaged) -> Floats:
    """The measure of each row of sums."""
    if not totals.shape[1]:
        return np.zeros(len(totals))
    return _labels.average(config.measure, totals, _labels.Averaged(average=config.average))
