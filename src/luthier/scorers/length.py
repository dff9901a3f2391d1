"""Length of the answer; neither long nor short is better, but it shows whether another score only rewards length."""

from __future__ import annotations

from typing import Literal

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Answer, Score, Target
from luthier.scorers._words import sentences, words


class Config(EntryConfig):
    """``unit``: ``characters``, ``words`` (Chinese: characters), ``sentences`` or ``bytes``. ``relative`` divides by the target's length."""

    unit: Literal["characters", "words", "sentences", "bytes"] = "words"
    relative: bool = False


def needs_target(config: Config) -> bool:
    """Only to be compared with."""
    return config.relative


def score(answer: Answer, target: Target, config: Config) -> Score:
    """The length; with ``relative`` None when the target is empty. Not for ranking: put it after the primary scorer."""
    given = _length(answer.text, config.unit)
    if not config.relative:
        return Score(float(given))
    wanted = _length(target.text, config.unit)
    if not wanted:
        return Score(None, {"reason": "the target is empty"})
    return Score(given / wanted, {"answer": given, "target": wanted})


def _length(text: str, unit: str) -> int:
    if unit == "characters":
        return len(text)
    if unit == "bytes":
        return len(text.encode("utf-8", "surrogatepass"))
    return len(words(text) if unit == "words" else sentences(text))
