"""Bits to encode each character of the target text, over the whole set: comparable between models with different tokenizers; lower is better."""

from __future__ import annotations

import math
from collections.abc import Sequence

from luthier.scorers import _likelihood
from luthier.scorers._score import Answer, Floats, Score, Target

Config = _likelihood.Measured
LOWER_IS_BETTER = True


def _bits(nats: Floats) -> Floats:
    return nats / math.log(2.0)


def score(answer: Answer, target: Target, config: Config) -> Score:
    """-log2 p / characters of one text; None when its likelihood is not known. A set has ``combine`` instead."""
    return _likelihood.scored(_likelihood.nats_and_length(answer, target, "character", config.length_of), _bits)


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """Columns: nats, characters."""
    return _likelihood.sums(answers, targets, "character", config.length_of)


def combine(totals: Floats, config: Config) -> Floats:
    """All bits / all characters, each row."""
    return _bits(_likelihood.per_unit(totals))
