"""Languages: only some may be spoken, told from a text's first characters. Lui and Baldwin 2012, "langid.py"; ISO 639-1 codes.

Code, addresses and numbers are left out; a text that has fewer than ``least`` letters then is let through, because nothing can be said of it.
"""

from __future__ import annotations

import math
import re

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import InputError, did_you_mean
from luthier.gateway.guardrails._contract import Context, Finding, Models, whole

ON = ("input", "output")
ACTIONS = ("block", "retry", "flag", "hand_over")
ROLES = ("user",)
_NO_WORDS = re.compile(r"```[^`]*(?:```|\Z)|https?://\S{1,2000}|[\W\d_]+")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_VARIETIES = {"yue": "zh", "wuu": "zh", "nn": "no", "arz": "ar", "ary": "ar", "uzs": "uz"}


class Config(EntryConfig):
    """``allowed``: ISO 639-1 codes. ``characters``: how many are read. ``threshold``: how sure it must be that the language is another."""

    allowed: tuple[str, ...] = Field(min_length=1)
    characters: int = Field(600, ge=50, le=4000)
    least: int = Field(20, ge=4)
    threshold: float = Field(0.9, gt=0, le=1)


def prepare(config: Config, models: Models) -> None:
    """Raises InputError for a code that is not known."""
    from py3langid import langid

    known = [code for code, _ in langid.rank("")]
    for code in config.allowed:
        if code not in known:
            raise InputError(f"allowed: {code!r} is not known. {did_you_mean(code, known)}")


def check(text: str, config: Config, context: Context) -> list[Finding]:
    """One finding over the whole text when its language is another."""
    from py3langid import langid

    words = _NO_WORDS.sub(" ", text[: config.characters]).strip()
    if (
        len(words) + 2 * len(_WIDE.findall(words)) < config.least
    ):  # a character of Chinese says as much as three letters
        return []
    scores = langid.rank(words.lower())
    top = scores[0][1]
    weights = {code: math.exp(score - top) for code, score in scores}
    total = sum(weights.values())
    allowed = sum(
        weight
        for code, weight in weights.items()
        if _VARIETIES.get(code, code) in config.allowed or code in config.allowed
    )
    sure = 1.0 - allowed / total
    if sure < config.threshold:
        return []
    return whole("language", text, sure, f"it is in {scores[0][0]}; allowed: {', '.join(config.allowed)}")
