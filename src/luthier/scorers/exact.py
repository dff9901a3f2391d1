"""Exact match after normalisation of white space, case and punctuation."""

from __future__ import annotations

import unicodedata

from luthier.core.catalog import EntryConfig
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
    text = unicodedata.normalize("NFC", text)
    if config.casefold:
        text = text.casefold()
    if config.punctuation:
        text = "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in text)
    if config.strip or config.punctuation:
        text = " ".join(text.split())
    return text


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the answer equals any accepted one after normalisation, else 0.0; the detail holds the normalised texts."""
    left, accepted = normalise(answer.text, config), [normalise(text, config) for text in target.accepted]
    right = left if left in accepted else accepted[0]
    return Score(1.0 if left == right else 0.0, {"answer": left, "target": right})
