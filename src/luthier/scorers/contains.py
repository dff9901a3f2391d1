"""Whether the target stands somewhere in the answer: the needle in a haystack, a fact in a longer reply."""

from __future__ import annotations

from typing import Literal

from luthier.core.catalog import EntryConfig
from luthier.scorers import _words
from luthier.scorers._normalise import Ignored, normalise
from luthier.scorers._score import Answer, Score, Target


class Config(EntryConfig):
    """``which``: ``any`` of the accepted answers is enough, or ``all`` must be there (the value is then the share that is).

    ``whole_words`` wants word boundaries around it (not between Chinese characters). ``casefold`` ignores upper and lower case,
    ``punctuation`` every character of the Unicode categories P and S; runs of white space count as one space.
    """

    which: Literal["any", "all"] = "any"
    whole_words: bool = False
    casefold: bool = True
    punctuation: bool = False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when found, else 0.0 (with ``all``, the share that was found); None when the target is empty."""
    ignored = Ignored(strip=True, casefold=config.casefold, punctuation=config.punctuation)
    text = normalise(answer.text, ignored)
    wanted = [normalise(one, ignored) for one in _words.reference_texts(target.accepted)]
    wanted = [one for one in wanted if one]
    if not wanted:
        return Score(None, {"reason": "the target is empty"})
    found = [one for one in wanted if _words.holds(text, one, whole_words=config.whole_words)]
    value = float(bool(found)) if config.which == "any" else len(found) / len(wanted)
    return Score(value, {"found": found})
