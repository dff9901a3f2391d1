"""BLEU: n-grams of the answer that a reference has, over the whole set (sacrebleu's tokenisation and smoothing; 0 to 1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Answer, Floats, Score, Target
from luthier.scorers._words import reference_texts

ORDER = 4


class Config(EntryConfig):
    """``tokenize``: ``13a`` (sacrebleu's default, for languages with spaces), ``zh`` for Chinese, ``intl``, ``char``, ``none``.

    Papers print a hundred times this figure. Examples with an empty reference are left out.
    """

    tokenize: Literal["13a", "zh", "intl", "char", "none"] = "13a"
    lowercase: bool = False


@lru_cache(maxsize=8)
def _metric(config: Config) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=config.tokenize, lowercase=config.lowercase, effective_order=True, force=True)


def _counted(answer: Answer, target: Target, config: Config) -> Any | None:
    references = reference_texts(target.accepted)
    return _metric(config).sentence_score(answer.text, references) if references else None


def score(answer: Answer, target: Target, config: Config) -> Score:
    """Sentence BLEU with as many orders as the answer has words for; None without a reference. A set has ``combine`` instead."""
    found = _counted(answer, target, config)
    if found is None:
        return Score(None, {"reason": "the reference is empty"})
    detail = {"precisions": [round(p, 2) for p in found.precisions], "brevity_penalty": round(found.bp, 4)}
    return Score(min(found.score / 100.0, 1.0), detail)


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """Columns: answer length, reference length (the nearest one's), right n-grams and all n-grams of orders 1 to 4."""
    out = np.zeros((len(answers), 2 + 2 * ORDER))
    for row, (answer, target) in enumerate(zip(answers, targets, strict=True)):
        found = _counted(answer, target, config)
        if found is not None:
            out[row] = [found.sys_len, found.ref_len, *found.counts, *found.totals]
    return out


def combine(totals: Floats, config: Config) -> Floats:
    """Corpus BLEU (Papineni et al., 2002) of each row with NIST's smoothing, as ``sacrebleu.corpus_bleu``; ``nan`` without references."""
    length, wanted = totals[:, 0], totals[:, 1]
    right, all_ = totals[:, 2 : 2 + ORDER], totals[:, 2 + ORDER :]
    halved = 2.0 ** np.cumsum(right == 0, axis=1)  # each order without a hit counts as 1/2, 1/4, ... of one
    hits = np.where(right > 0, right, 1.0 / halved)
    some = (all_ > 0).all(axis=1) & (right > 0).any(axis=1)
    logs = np.log(hits / np.where(all_ > 0, all_, 1.0)).mean(axis=1)
    brief = np.minimum(1.0 - wanted / np.where(length > 0, length, 1.0), 0.0)
    figures: Floats = np.where(some, np.exp(logs + brief), 0.0)
    return np.where(wanted > 0, figures, np.nan)
