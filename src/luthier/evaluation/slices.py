"""Figures of the parts of a test set, and the warning when the parts say the opposite of the whole (Simpson, 1951)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.errors import InputError
from luthier.evaluation.statistics import (
    RESAMPLES,
    Interval,
    Statistic,
    bootstrap,
    holm,
    interval,
    one_draw,
)

if TYPE_CHECKING:
    from luthier.evaluation.loop import Scorer
    from luthier.evaluation.records import Record

MOST_SHARE = 2.0 / 3.0
"""An entrant that wins at least this share of the slices, of three or more, and loses the whole is worth a warning."""

COMPARED = 4_000
"""Resamples for the p of a slice: enough for an adjusted 0.05 among a hundred of them."""


@dataclass(frozen=True)
class Slice:
    """One part: the examples whose ``key`` has ``value``. ``difference`` is its figure minus that of all other examples, ``p_adjusted``
    whether that is more than chance, with Holm's adjustment over all slices of all keys (None where the rest is empty)."""

    key: str
    value: str
    examples: int
    figure: Interval
    difference: float | None = None
    p: float | None = None
    p_adjusted: float | None = None


@dataclass(frozen=True)
class Reversal:
    """Simpson's paradox: ``slices_winner`` is better in ``won`` of the ``slices`` of ``key`` and ``whole_winner`` over all examples."""

    key: str
    slices_winner: str
    whole_winner: str
    won: int
    slices: int
    whole: Mapping[str, float]

    def __str__(self) -> str:
        every = "every slice" if self.won == self.slices else f"{self.won} of {self.slices} slices"
        told = " to ".join(f"{self.whole[name]:.3f}" for name in (self.whole_winner, self.slices_winner))
        return (
            f"by {self.key}, {self.slices_winner} is better in {every}, yet {self.whole_winner} over all examples ({told}): "
            "the slices weigh differently for the two, so say which mix of them you will meet before you choose"
        )


@dataclass(frozen=True)
class Part:
    """An entrant's figure on one slice, and how many examples it is of."""

    examples: int
    figure: float


def slice_figures(
    scorer: Scorer, records: Sequence[Record], keys: Sequence[str] = (), *, resamples: int = RESAMPLES
) -> list[Slice]:
    """The scorer's figure on every value of every key (left out: all that the records have), with intervals and Holm's p.

    A slice in which nothing could be scored is left out. Keys are sorted as given, values by size, largest first.
    """
    from luthier.evaluation.result import statistic_of

    keys = keys or sorted({key for record in records for key in record.slices})
    if not records or not keys:
        return []
    scores = [record.scores.get(scorer.label) for record in records]
    whole = statistic_of(scorer, records)
    masks = [
        (key, value, np.array([record.slices.get(key) == value for record in records]))
        for key in keys
        for value in {record.slices[key]: None for record in records if key in record.slices}
    ]
    found = []
    for key, value, mask in masks:
        part = [record for record, inside in zip(records, mask, strict=True) if inside]
        figure = statistic_of(scorer, part)
        if np.isnan(figure.value):
            continue
        replicates = bootstrap([figure], len(part), resamples)[0]
        own = [score for score, inside in zip(scores, mask, strict=True) if inside]
        shown = interval(figure.value, replicates, statistic=figure, scores=own, bounds=scorer.entry.optional("BOUNDS"))
        found.append((key, value, mask, shown))
    compared = _against_the_rest(whole, [mask for _, _, mask, _ in found], min(resamples, COMPARED))
    adjusted = iter(holm([p for _, p in compared if p is not None]))
    out = [
        Slice(key, value, int(mask.sum()), shown, difference, p, None if p is None else next(adjusted))
        for (key, value, mask, shown), (difference, p) in zip(found, compared, strict=True)
    ]
    return sorted(out, key=lambda s: (list(keys).index(s.key), -s.examples, s.value))


def _against_the_rest(
    whole: Statistic, masks: Sequence[np.ndarray[tuple[int], np.dtype[np.bool_]]], resamples: int
) -> list[tuple[float | None, float | None]]:
    """Each slice's difference to all other examples, and its p by the bootstrap (the two are of different examples). All slices share
    the draws."""
    if not masks:
        return []

    def gap(mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Statistic:
        inside, outside = mask.astype(np.float32), (~mask).astype(np.float32)
        return lambda counts: whole(counts * inside) - whole(counts * outside)

    gaps = [gap(mask) for mask in masks]
    observed = [
        float(one(one_draw(len(mask)))[0]) if (~mask).any() else float("nan")
        for one, mask in zip(gaps, masks, strict=True)
    ]
    replicates = bootstrap(gaps, len(masks[0]), resamples)
    out: list[tuple[float | None, float | None]] = []
    for value, row in zip(observed, replicates, strict=True):
        drawn = row[np.isfinite(row)]
        if np.isnan(value):
            out.append((None, None))
        else:
            extreme = int(np.count_nonzero(np.abs(drawn - value) >= abs(value) - 1e-12))
            out.append((value, (extreme + 1) / (len(drawn) + 1)))
    return out


def reversals(
    parts: Mapping[str, Mapping[str, Mapping[str, Part]]],
    whole: Mapping[str, float],
    *,
    lower_is_better: bool = False,
) -> list[Reversal]:
    """Simpson's paradox between every two entrants: one is better in every slice of a key, or in two thirds of three or more, and the
    other over all examples.

    ``parts[entrant][key][value]`` are the slices, ``whole[entrant]`` the figures over all examples. On the very same examples the mean
    of a score cannot turn round completely; a macro F1 can, and so can means over different examples (refused or unscored ones,
    production traffic). Raises InputError for an entrant without a whole.
    """
    missing = sorted(set(parts) - set(whole))
    if missing:
        raise InputError(f"whole has no figure for {', '.join(missing)}; it has {', '.join(sorted(whole)) or 'none'}")
    sign = -1.0 if lower_is_better else 1.0
    out = []
    for one, other in combinations(sorted(parts), 2):
        gap = sign * (whole[one] - whole[other])
        if gap == 0:
            continue
        better, worse = (one, other) if gap > 0 else (other, one)
        for key in sorted(parts[one].keys() & parts[other].keys()):
            shared = parts[one][key].keys() & parts[other][key].keys()
            gaps = [sign * (parts[worse][key][v].figure - parts[better][key][v].figure) for v in sorted(shared)]
            won = sum(g > 0 for g in gaps)
            most = len(gaps) >= 3 and won / len(gaps) >= MOST_SHARE
            if len(gaps) >= 2 and (won == len(gaps) or most):
                out.append(
                    Reversal(key, worse, better, won, len(gaps), {name: whole[name] for name in (better, worse)})
                )
    return out


def parts_of(slices: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Part]]:
    """The slices of a result (``EvalResult.slices``) in the form that ``reversals`` takes."""
    return {
        key: {value: Part(int(part["examples"]), float(part["value"])) for value, part in values.items()}
        for key, values in slices.items()
    }
