"""Words for keyword search, where the index has no tokenizer that cuts Chinese."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from typing import Any

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_HAN}]+|[^\\W_{_HAN}]+")
_IS_HAN = re.compile(f"[{_HAN}]")


def words(text: str, *, stem: bool = True) -> list[str]:
    """The words of a text in order: lower case, without accents, English ones reduced to their stems (Porter's second algorithm).

    Chinese and Japanese, which set no spaces, give each character and each pair of neighbours: pairs find words and characters find what
    a segmenter would have cut otherwise (Nie, Gao, Zhang and Zhou 2000, On the use of words and n-grams for Chinese information retrieval).
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    out: list[str] = []
    for found in _WORD.findall(unicodedata.normalize("NFKC", plain)):
        if _IS_HAN.match(found):
            out += found
            out += (found[place : place + 2] for place in range(len(found) - 1))
        else:
            out.append(_stemmed(found) if stem else found)
    return out


@lru_cache(maxsize=100_000)
def _stemmed(word: str) -> str:
    found: str = _stemmer().stem(word)
    return found


@cache
def _stemmer() -> Any:
    from nltk.stem.snowball import EnglishStemmer

    return EnglishStemmer()
