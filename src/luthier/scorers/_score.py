"""What a scorer is given, what it says of one answer, and how a whole set's figure follows.

A scorer file defines ``Config`` and ``score(answer, target, config) -> Score``. A set's figure is the mean of its examples' values,
unless the file says otherwise with one of:

- ``sums(answers, targets, config)`` -> matrix (examples, k) and ``combine(totals, config)``: totals (n, k) -> figures (n,). The figure
  is a function of sums over examples (corpus BLEU, F1, a correlation), so thousands of resamples are one matrix product. With
  ``sums_of(scores, config)`` instead of ``sums``, it is one of the examples' scores and their details;
- ``aggregate(answers, targets, config) -> float`` and, where it can be fast, ``resampled(answers, targets, counts, config)``. ``counts``
  has shape (resamples, examples) and says how often each example was drawn.

More is optional: ``score_many(answers, targets, config, resources) -> list[Score]`` where a batch is cheaper than one by one, or
other engines, programs or databases are needed; ``needs_target(config) -> bool`` where an answer can be scored without the target's text; and
the constants ``LOWER_IS_BETTER = True`` and ``BOUNDS = (low, high)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from luthier.core.catalog import Entry
from luthier.core.score import Answer, Option, Score, Target

if TYPE_CHECKING:
    from luthier.core.engine import Engine
    from luthier.store.database import Store

__all__ = ["Answer", "Counts", "Figure", "Floats", "Option", "Resources", "Score", "Target", "score_all"]

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.float32]


class Resources:
    """What scorers may use beside the answers: engines opened once by name, the store, and logs in the run's folder."""

    def __init__(self, store: Store | None = None, folder: Path | None = None) -> None:
        self.store, self.folder = store, folder
        self._engines: dict[tuple[str, str], Engine] = {}

    def engine(self, name: str, kind: str = "auto") -> Engine:
        """The model called ``name`` on engine ``kind``, opened at the first call and closed by ``close``."""
        from luthier.strategies._load import load

        if (name, kind) not in self._engines:
            self._engines[name, kind] = load(name, engine=kind, store=self.store)
        return self._engines[name, kind]

    def log(self, name: str, record: Mapping[str, Any]) -> None:
        """Append ``record`` to ``NAME.jsonl`` in the run's folder; nothing is kept where there is no run."""
        if self.folder is not None:
            with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the engines."""
        while self._engines:
            self._engines.popitem()[1].close()


def score_all(
    entry: Entry, config: Any, answers: Sequence[Answer], targets: Sequence[Target], resources: Resources
) -> list[Score]:
    """Every answer's score, in order."""
    many = entry.optional("score_many")
    if many is not None:
        return list(many(answers, targets, config, resources))
    return [entry(answer, target, config) for answer, target in zip(answers, targets, strict=True)]


class Figure:
    """A scorer's figure over one set, and over resamples of it. ``values`` and ``details`` are the examples' own scores.

    Called with counts (resamples, examples), returns (resamples,) figures; ``nan`` where a resample has nothing to score.
    """

    def __init__(
        self,
        entry: Entry,
        config: Any,
        answers: Sequence[Answer],
        targets: Sequence[Target],
        values: Sequence[float | None],
        details: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._entry, self._config = entry, config
        self._answers, self._targets = list(answers), list(targets)
        self._sums: Floats | None = None
        if entry.optional("sums_of") is not None:
            rows = zip(values, details or [{}] * len(values), strict=True)
            self._sums = np.asarray(entry.module.sums_of([Score(*row) for row in rows], config), dtype=np.float64)
        elif entry.optional("sums") is not None:
            self._sums = np.asarray(entry.module.sums(self._answers, self._targets, config), dtype=np.float64)
        elif entry.optional("aggregate") is None:
            self._sums = np.array([(v or 0.0, v is not None) for v in values], dtype=np.float64).reshape(len(values), 2)

    def __call__(self, counts: Counts) -> Floats:
        """Figures, one a row of ``counts``."""
        if self._sums is not None:
            return self._combined(counts.astype(np.float64) @ self._sums)
        fast = self._entry.optional("resampled")
        if fast is not None:
            return np.asarray(fast(self._answers, self._targets, counts, self._config), dtype=np.float64)
        return np.array([self._drawn(row) for row in counts])

    def left_out(self) -> Floats:
        """The figure without each of the examples in turn, shape (examples,)."""
        if self._sums is not None:
            return self._combined(self._sums.sum(axis=0) - self._sums)
        return np.concatenate([self(1.0 - row[None]) for row in np.eye(len(self._answers), dtype=np.float32)])

    def _combined(self, totals: Floats) -> Floats:
        combine = self._entry.optional("combine")
        if combine is not None:
            return np.asarray(combine(totals, self._config), dtype=np.float64)
        means: Floats = np.full(len(totals), np.nan)
        np.divide(totals[:, 0], totals[:, 1], out=means, where=totals[:, 1] > 0)
        return means

    @property
    def value(self) -> float:
        """The figure of the set itself; ``nan`` when nothing in it could be scored."""
        if self._sums is None:
            return float(self._entry.module.aggregate(self._answers, self._targets, self._config))
        return float(self(np.ones((1, len(self._answers)), dtype=np.float32))[0])

    def _drawn(self, row: npt.NDArray[np.float32]) -> float:
        drawn = np.repeat(np.arange(len(row)), row.astype(np.int64))
        answers, targets = [self._answers[i] for i in drawn], [self._targets[i] for i in drawn]
        return float(self._entry.module.aggregate(answers, targets, self._config))
