"""What a scorer says of one answer, and the means over many that all scorers share.

A scorer file defines ``Config``, ``score(answer, target, config) -> Score`` and, where the figure of a whole set is not the mean of
its examples, also ``aggregate(answers, targets, config) -> float`` and ``resampled(answers, targets, counts, config)``: the same
figure for many resamples at once. ``counts`` has shape (resamples, examples) and says how often each example was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.core.catalog import Entry

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Score:
    """``value`` is higher for better answers; ``detail`` says how it came about."""

    value: float
    detail: Mapping[str, Any] = field(default_factory=dict)


def aggregate(entry: Entry, config: Any, answers: Sequence[str], targets: Sequence[str]) -> float:
    """The scorer's figure for a whole set: its own ``aggregate``, else the mean of the examples' values."""
    own = entry.optional("aggregate")
    if own is not None:
        return float(own(answers, targets, config))
    return float(
        np.mean([entry(answer, target, config).value for answer, target in zip(answers, targets, strict=True)])
    )


class Resampler:
    """A scorer's figure on resamples of one set: called with counts (resamples, examples), returns (resamples,) values."""

    def __init__(self, entry: Entry, config: Any, answers: Sequence[str], targets: Sequence[str]) -> None:
        self._entry, self._config = entry, config
        self._answers, self._targets = list(answers), list(targets)
        self._values: Floats | None = None
        if entry.optional("aggregate") is None:
            pairs = zip(self._answers, self._targets, strict=True)
            self._values = np.array([entry(answer, target, config).value for answer, target in pairs])

    def __call__(self, counts: Counts) -> Floats:
        """Values, one a row of ``counts``."""
        if self._values is not None:
            means: Floats = (counts @ self._values) / counts.sum(axis=1)
            return means
        fast = self._entry.optional("resampled")
        if fast is not None:
            return np.asarray(fast(self._answers, self._targets, counts, self._config), dtype=np.float64)
        return np.array([self._one(row) for row in counts])

    def _one(self, row: npt.NDArray[np.float32]) -> float:
        drawn = np.repeat(np.arange(len(row)), row.astype(np.int64))
        own = self._entry.optional("aggregate")
        assert own is not None
        return float(own([self._answers[i] for i in drawn], [self._targets[i] for i in drawn], self._config))
