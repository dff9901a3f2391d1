"""What is ignored when texts are compared."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ignored:
    """``strip``: white space around the text, and runs of it inside. ``punctuation``: Unicode categories P and S."""

    strip: bool = True
    casefold: bool = False
    punctuation: bool = False


def normalise(text: str, ignored: Ignored) -> str:
    """``text`` without what is ignored, in Unicode form NFC."""
    text = unicodedata.normalize("NFC", text)
    if ignored.casefold:
        text = text.casefold()
    if ignored.punctuation:
        text = "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in text)
    if ignored.strip or ignored.punctuation:
        text = " ".join(text.split())
    return text
