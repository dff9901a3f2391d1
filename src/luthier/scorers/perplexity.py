"""Perplexity of the target text for each word, token or byte, over the whole set: how surprised the model is; lower is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from luthier.core.catalog import EntryConfig
from luthier.scorers import _likelihood
from luthier.scorers._score import Answer, Floats, Score, Target

LOWER_IS_BETTER = True


class Config(EntryConfig):
    """``level``: ``word`` (white space parts words; lm-evaluation-harness's ``word_perplexity``), ``token`` (the model's own, so not
    comparable between tokenizers) or ``byte``. ``length_of`` says which text is measured: the ``target``, or the ``original``, which is
    the last reference, where a benchmark cleans its text before it is scored (WikiText).
    """

    level: Literal["word", "token", "byte"] = "word"
    length_of: Literal["target", "original"] = "target"


def score(answer: Answer, target: Target, config: Config) -> Score:
    """exp(nats / units) of one text; None when its likelihood is not known. A set has ``combine`` instead."""
    found = _likelihood.nats_and_length(answer, target, config.level, config.length_of)
    return _likelihood.scored(found, _likelihood.perplexities)


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """Columns: nats, units."""
    return _likelihood.sums(answers, targets, config.level, config.length_of)


def combine(totals: Floats, config: Config) -> Floats:
    """exp(all nats / all units) of each row (Jelinek et al., 1977)."""
    return _likelihood.perplexities(_likelihood.per_unit(totals))
