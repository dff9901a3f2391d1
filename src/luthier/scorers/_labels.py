"""Counting what labels were right: the sums behind precision, recall, F1 and Matthews' correlation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import model_validator

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Answer, Floats, Score, Target


class Averaged(EntryConfig):
    """``average``: ``macro`` is the mean over labels, ``weighted`` weighs them by how often they are the target, ``micro`` counts over
    all labels together, ``binary`` is of the one label ``positive``. ``labels`` are averaged over; empty means the labels that occur
    among the targets. A ratio without a denominator is 0, as in scikit-learn with ``zero_division=0``.
    """

    average: Literal["macro", "micro", "weighted", "binary"] = "macro"
    labels: tuple[str, ...] = ()
    positive: str = ""

    @model_validator(mode="after")
    def _one_is_positive(self) -> Averaged:
        if (self.average == "binary") != bool(self.positive):
            raise ValueError("positive and average: binary go together: name the label that is looked for")
        return self


def right(answer: Answer, target: Target) -> Score:
    """1.0 when the answer is the target's label to the letter, else 0.0."""
    return Score(1.0 if answer.text == target.text else 0.0)


def known_labels(targets: Sequence[Target], given: Sequence[str] = (), positive: str = "") -> tuple[str, ...]:
    """The labels that are counted: those given, or those among the targets; ``positive`` is always one of them."""
    found = tuple(given) or tuple(sorted({target.text for target in targets}))
    return found if not positive or positive in found else (*found, positive)


def label_sums(answers: Sequence[Answer], targets: Sequence[Target], labels: Sequence[str]) -> Floats:
    """Three columns a label: hits, targets, answers. An answer outside the labels is a miss and nobody's false alarm."""
    index = {label: i for i, label in enumerate(labels)}
    out = np.zeros((len(targets), 3, len(labels)))
    for row, (answer, target) in enumerate(zip(answers, targets, strict=True)):
        if target.text in index:
            out[row, 0, index[target.text]] = answer.text == target.text
            out[row, 1, index[target.text]] = 1.0
        if answer.text in index:
            out[row, 2, index[answer.text]] = 1.0
    return out.reshape(len(targets), -1)


def averaged_sums(answers: Sequence[Answer], targets: Sequence[Target], config: Averaged) -> Floats:
    """``label_sums`` of the labels that ``config`` averages over: for ``binary`` only the positive one."""
    labels = (config.positive,) if config.positive else known_labels(targets, config.labels)
    return label_sums(answers, targets, labels)


def average(measure: Literal["precision", "recall", "f1"], totals: Floats, config: Averaged) -> Floats:
    """One figure for each row of summed counts, from the definitions in Manning et al. (2008), ch. 13.6.

    Without ``labels``, one that a resample drew neither as target nor as answer is left out of its macro mean.
    """
    hits, wanted, given = np.moveaxis(totals.reshape(len(totals), 3, -1), 1, 0)
    present = wanted + given > 0
    if config.average == "micro":
        hits, wanted, given = (part.sum(axis=1, keepdims=True) for part in (hits, wanted, given))
    above, below = {
        "precision": (hits, given),
        "recall": (hits, wanted),
        "f1": (2.0 * hits, wanted + given),
    }[measure]
    ratio = np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
    if config.average == "macro":
        over = np.full(len(totals), hits.shape[1]) if config.labels else present.sum(axis=1)
        return _quotient(ratio.sum(axis=1), over.astype(np.float64))
    if config.average == "weighted":
        return _quotient((ratio * wanted).sum(axis=1), wanted.sum(axis=1))
    figures: Floats = ratio.sum(axis=1)
    return figures


def _quotient(above: Floats, below: Floats) -> Floats:
    """0 where there is nothing below."""
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
