"""How texts are cut into words, by the scorers that compare words.

Chinese and Japanese are written without spaces, so each of their characters is a word of its own there. Text without such characters is
treated as the metric's own definition says.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nltk.tokenize.punkt import PunktSentenceTokenizer

UNSPACED = r"\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}_]+")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSING = re.compile(r"(?<=[。！？!?…])[”’」』）)\"']*(?=\S)|(?<=[.!?])\s+(?=[\"'“‘(]?[A-Z0-9])")
ABBREVIATIONS = (
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "inc", "ltd", "corp", "vs", "etc", "e.g", "i.e", "u.s", "u.k", "u.n", "a.m",
    "p.m", "vol", "fig", "dept", "est", "approx", "gov", "sen", "capt", "lt", "ph.d", "d.c", "b.c", "a.d", "p.s", "p.p.s",
    "jan", "feb", "apr", "aug", "sep", "sept", "oct", "nov", "dec",
)  # fmt: skip


def is_unspaced(text: str) -> bool:
    """Whether ``text`` holds Chinese or Japanese characters."""
    return _UNSPACED.search(text) is not None


def spaced(text: str) -> str:
    """``text`` with spaces around each Chinese or Japanese character."""
    return _UNSPACED.sub(lambda found: f" {found[0]} ", text)


def words(text: str) -> list[str]:
    """Runs of letters and digits, and Chinese or Japanese characters one by one; case is kept."""
    return _WORD.findall(unicodedata.normalize("NFC", text))


def squad_normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces (the evaluation of SQuAD; Rajpurkar et al., 2016).

    In text with Chinese or Japanese characters, every Unicode punctuation mark goes too (as CMRC 2018 does for Chinese).
    """
    text = text.lower().translate(_ASCII_PUNCTUATION)
    if is_unspaced(text):
        text = "".join(c for c in text if unicodedata.category(c)[0] != "P")
    return " ".join(_ARTICLE.sub(" ", text).split())


def squad_words(text: str) -> list[str]:
    """Words of ``squad_normalise``."""
    return spaced(squad_normalise(text)).split()


def reference_texts(accepted: Sequence[str]) -> tuple[str, ...]:
    """The accepted answers that have any text."""
    return tuple(text for text in accepted if text.strip())


def sentences(text: str) -> list[str]:
    """Sentences by Punkt's rules (Kiss and Strunk, 2006) with a fixed list of abbreviations; Chinese ones end at 。！？."""
    found = [part.strip() for part in _punkt().tokenize(text)]
    if is_unspaced(text):
        found = [piece.strip() for part in found for piece in _CLOSING.split(part)]
    return [part for part in found if part]


@lru_cache(maxsize=1)
def _punkt() -> PunktSentenceTokenizer:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)


def holds(text: str, part: str, *, whole_words: bool = False) -> bool:
    """Whether ``part`` stands in ``text``; with ``whole_words`` not inside a word (Chinese characters are words of their own)."""
    place = text.find(part)
    while place >= 0:
        end = place + len(part)
        if not whole_words or not (_joined(text[place - 1 : place], part[0]) or _joined(part[-1], text[end : end + 1])):
            return True
        place = text.find(part, place + 1)
    return False


def _joined(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one word."""
    return left.isalnum() and right.isalnum() and not (is_unspaced(left) or is_unspaced(right))
