"""METEOR: words aligned by form, stem and, where WordNet is installed, meaning; order counts. Chinese by character."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Answer, Score, Target
from luthier.scorers._words import reference_texts, words


class Config(EntryConfig):
    """``alpha`` weighs precision against recall, ``beta`` and ``gamma`` shape the penalty for words in another order.

    Synonyms count only with ``synonyms: true`` and NLTK's WordNet data (``python -m nltk.downloader wordnet``); else only equal words and
    equal stems are aligned. The detail of each example says which. Examples with an empty reference are left out.
    """

    alpha: float = Field(default=0.9, ge=0.0, le=1.0)
    beta: float = Field(default=3.0, ge=0.0)
    gamma: float = Field(default=0.5, ge=0.0, le=1.0)
    synonyms: bool = False


class NoSynonyms:
    """In the place of WordNet: a word means only itself."""

    def synsets(self, word: str) -> list[Any]:
        """Nothing."""
        return []


@lru_cache(maxsize=1)
def _wordnet() -> Any | None:
    """NLTK's WordNet, or None when its data are not installed."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    return wordnet


def score(answer: Answer, target: Target, config: Config) -> Score:
    """METEOR (Lavie and Agarwal, 2007) with the reference that fits best; None without a reference.

    The alignment is NLTK's, which pairs repeated words from the end. One word that is right gets 1/2, because one chunk of one word
    has the full penalty: that is how the metric is defined.
    """
    from nltk.translate.meteor_score import meteor_score

    references = [words(text) for text in reference_texts(target.accepted)]
    if not references:
        return Score(None, {"reason": "the reference is empty"})
    meanings = _wordnet() if config.synonyms else None
    matched = "form, stem, WordNet" if meanings is not None else "form, stem"
    options = {"alpha": config.alpha, "beta": config.beta, "gamma": config.gamma}
    value = float(meteor_score(references, words(answer.text), wordnet=meanings or NoSynonyms(), **options))
    return Score(value, {"matched": matched})
