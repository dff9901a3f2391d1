"""Exact match after normalisation of white space, case and punctuation."""

from __future__ import annotations

import unicodedata

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Score


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


def score(answer: str, target: str, config: Config) -> Score:
    """1.0 when answer and target are equal after normalisation, else 0.0; the detail holds both normalised texts."""
    left, right = normalise(answer, config), normalise(target, config)
    return Score(1.0 if left == right else 0.0, {"answer": left, "target": right})
