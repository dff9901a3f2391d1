"""Exact match after normalisation of white space, case and punctuation."""

from __future__ import annotations

from luthier.core.catalog import EntryConfig
from luthier.scorers import _normalise
from luthier.scorers._score import Answer, Score, Target


class Config(EntryConfig):
    """What is ignored in the comparison.

    ``strip``: white space around the text, and runs of it inside. ``casefold``: upper and lower case. ``punctuation``: every
    character of the Unicode categories P and S (so ``42%`` equals ``42``).
    """

    strip: bool = True
    casefold: bool = False
    punctuation: bool = False


def normalise(text: str, config: Config) -> str:
    """``text`` without what ``config`` ignores, in Unicode form NFC."""
    return _normalise.normalise(text, _normalise.Ignored(config.strip, config.casefold, config.punctuation))


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the answer equals any accepted one after normalisation, else 0.0; the detail holds the normalised texts."""
    left, accepted = normalise(answer.text, config), [normalise(text, config) for text in target.accepted]
    right = left if left in accepted else accepted[0]
    return Score(1.0 if left == right else 0.0, {"answer": left, "target": right})
