"""Likeness by edits: 1 minus the share of characters (or words) to insert, delete or replace; 1 is the same text."""

from __future__ import annotations

from typing import Literal

from luthier.core.catalog import EntryConfig
from luthier.scorers._normalise import Ignored, normalise
from luthier.scorers._score import Answer, Score, Target
from luthier.scorers._words import words


class Config(EntryConfig):
    """``unit`` counts edits of characters or of words (Chinese: characters). ``casefold`` ignores upper and lower case,
    ``punctuation`` the Unicode categories P and S. See ``character_error_rate`` and ``word_error_rate`` for the errors of a whole set.
    """

    unit: Literal["characters", "words"] = "characters"
    casefold: bool = False
    punctuation: bool = False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1 - distance / length of the longer text (Levenshtein, 1966), with the accepted answer that is nearest."""
    from rapidfuzz.distance import Levenshtein

    ignored = Ignored(strip=True, casefold=config.casefold, punctuation=config.punctuation)

    def units(text: str) -> str | list[str]:
        text = normalise(text, ignored)
        return text if config.unit == "characters" else words(text)

    given = units(answer.text)
    best = max(target.accepted, key=lambda text: Levenshtein.normalized_similarity(given, units(text)))
    wanted = units(best)
    value = float(Levenshtein.normalized_similarity(given, wanted))
    return Score(value, {"edits": Levenshtein.distance(given, wanted), "target": best})
