"""TER: words to insert, delete, replace or move, as a share of the reference's words, over the whole set; 0 is perfect."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Answer, Floats, Score, Target
from luthier.scorers._words import reference_texts

LOWER_IS_BETTER = True


class Config(EntryConfig):
    """``normalized`` parts punctuation from words, ``no_punct`` removes it, ``asian_support`` (with either) cuts Chinese and Japanese into
    characters: without it a Chinese sentence is one word. Examples with an empty reference are left out.
    """

    normalized: bool = False
    no_punct: bool = False
    asian_support: bool = False
    case_sensitive: bool = False


@lru_cache(maxsize=8)
def _metric(config: Config) -> Any:
    from sacrebleu.metrics.ter import TER

    return TER(**config.model_dump())


def _counted(answer: Answer, target: Target, config: Config) -> tuple[float, float] | None:
    """(edits with the nearest reference, mean length of the references)."""
    references = reference_texts(target.accepted)
    return _edits(answer.text, references, config) if references else None


@lru_cache(maxsize=100_000)  # seconds for one long answer, which is wanted for its own score and for the set's figure
def _edits(text: str, references: tuple[str, ...], config: Config) -> tuple[float, float]:
    found = _metric(config).sentence_score(text, references)
    return float(found.num_edits), float(found.ref_length)


def score(answer: Answer, target: Target, config: Config) -> Score:
    """Edits / reference length; None without a reference. A set has ``combine`` instead."""
    found = _counted(answer, target, config)
    if found is None or found[1] == 0:
        return Score(None, {"reason": "the reference is empty"})
    return Score(found[0] / found[1], {"edits": found[0], "length": found[1]})


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """Columns: edits, reference length."""
    found = [_counted(answer, target, config) for answer, target in zip(answers, targets, strict=True)]
    return np.array([pair or (0.0, 0.0) for pair in found], dtype=np.float64).reshape(len(found), 2)


def combine(totals: Floats, config: Config) -> Floats:
    """Corpus TER (Snover et al., 2006) of each row, as ``sacrebleu.corpus_ter``; ``nan`` without references."""
    out: Floats = np.divide(totals[:, 0], totals[:, 1], out=np.full(len(totals), np.nan), where=totals[:, 1] > 0)
    return out
