"""Mean over labels of F1, so that rare labels count as much as frequent ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Counts, Floats, Score


class Config(EntryConfig):
    """``labels`` are averaged over; empty means the labels that occur among the targets."""

    labels: tuple[str, ...] = ()


def score(answer: str, target: str, config: Config) -> Score:
    """1.0 when the label is right, else 0.0. The figure of a set is ``aggregate``, not the mean of these."""
    return Score(1.0 if answer == target else 0.0)


def aggregate(answers: Sequence[str], targets: Sequence[str], config: Config) -> float:
    """Macro F1 as scikit-learn computes it with ``labels`` given and ``zero_division=0``.

    An answer outside the labels (unparsed text) is a miss for its target and a false alarm for nobody.
    """
    from sklearn.metrics import f1_score

    labels = _labels(targets, config)
    return float(f1_score(list(targets), list(answers), labels=labels, average="macro", zero_division=0.0))


def resampled(answers: Sequence[str], targets: Sequence[str], counts: Counts, config: Config) -> Floats:
    """Macro F1 of each resample, shape (resamples,), from weighted confusion counts: F1 = 2 TP / (targets + answers).

    A label that a resample drew neither as target nor as answer has no F1 there and is left out of its mean.
    """
    index = {label: i for i, label in enumerate(_labels(targets, config))}
    wanted, given = _one_hot(targets, index), _one_hot(answers, index)
    hits = counts @ (wanted * given)
    total = counts @ wanted + counts @ given
    present = total > 0
    f1 = np.divide(2.0 * hits, total, out=np.zeros(hits.shape, dtype=np.float64), where=present)
    means: Floats = f1.sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    return means


def _labels(targets: Sequence[str], config: Config) -> list[str]:
    return list(config.labels) or sorted(set(targets))


def _one_hot(texts: Sequence[str], index: dict[str, int]) -> Counts:
    out = np.zeros((len(texts), len(index)), dtype=np.float32)
    for row, text in enumerate(texts):
        if text in index:
            out[row, index[text]] = 1.0
    return out
