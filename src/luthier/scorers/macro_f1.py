"""Mean over labels of F1, so that rare labels count as much as frequent ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Answer, Floats, Score, Target


class Config(EntryConfig):
    """``labels`` are averaged over; empty means the labels that occur among the targets."""

    labels: tuple[str, ...] = ()


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the label is right, else 0.0. The figure of a set is ``combine`` of ``sums``, not the mean of these."""
    return Score(1.0 if answer.text == target.text else 0.0)


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """Three columns a label: hits, targets, answers. An answer outside the labels is a miss and nobody's false alarm."""
    labels = config.labels or tuple(sorted({t.text for t in targets}))
    index = {label: i for i, label in enumerate(labels)}
    out = np.zeros((len(targets), 3, len(labels)))
    for row, (answer, target) in enumerate(zip(answers, targets, strict=True)):
        if target.text in index:
            out[row, 0, index[target.text]] = answer.text == target.text
            out[row, 1, index[target.text]] = 1.0
        if answer.text in index:
            out[row, 2, index[answer.text]] = 1.0
    return out.reshape(len(targets), -1)


def combine(totals: Floats, config: Config) -> Floats:
    """Macro F1 of each row, F1 = 2 hits / (targets + answers), as scikit-learn computes it with ``labels`` and ``zero_division=0``.

    Without ``labels``, one that a resample drew neither as target nor as answer has no F1 there and is left out of its mean.
    """
    hits, wanted, given = np.moveaxis(totals.reshape(len(totals), 3, -1), 1, 0)
    present = wanted + given > 0
    f1 = np.divide(2.0 * hits, wanted + given, out=np.zeros(hits.shape), where=present)
    over = np.full(len(totals), hits.shape[1]) if config.labels else np.maximum(present.sum(axis=1), 1)
    means: Floats = f1.sum(axis=1) / over
    return means
