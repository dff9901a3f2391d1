"""What the finders of personal data share: spans, and text in which every digit, letter and dash has one form."""

from __future__ import annotations

import re
import sys
import unicodedata
from dataclasses import dataclass
from functools import cache

KINDS = ("EMAIL", "PHONE", "CARD", "IBAN", "CN_ID", "SSN", "PASSPORT", "PLATE", "IP", "SECRET")
"""What ``pii.find`` finds. SECRET: API keys, tokens, private keys, passwords that are named as such, logins in URLs."""

CONTEXT = 48
"""How many characters before a span may decide what it is."""

KEPT = 2 * CONTEXT
"""How many characters before a cut ``pii.scan`` may want to see."""

BREAKS = "\\s\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\U00020000-\U0003ffff\u201c\u201d\u2018\u2026"
"""White space, and the scripts and marks that are written without it: an inside of a character class."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text, ``text[start:end]``, and what it is: one of ``KINDS``."""

    kind: str
    start: int
    end: int

    def of(self, text: str) -> str:
        """The part itself."""
        return text[self.start : self.end]


@cache
def _forms() -> dict[int, str]:
    """Other forms of ASCII characters, one for one: digits of every script, full-width signs, dashes, spaces."""
    forms = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    for code in range(0x80, sys.maxunicode + 1):
        value = unicodedata.decimal(chr(code), None)
        if value is not None:
            forms[code] = str(int(value))
    forms |= {ord(each): "-" for each in "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63"}
    forms |= {ord(each): " " for each in "\u00a0\u2002\u2003\u2005\u2007\u2009\u200a\u202f\u3000"}
    return forms


def plain(text: str) -> str:
    """``text`` with ASCII forms where there are such; as long as before, so that positions are the same."""
    return text if text.isascii() else text.translate(_forms())


def said_before(text: str, start: int, words: re.Pattern[str]) -> bool:
    """Whether ``words`` occur shortly before ``start``, on the same line."""
    before = text[max(0, start - CONTEXT) : start]
    return words.search(before[before.rfind("\n") + 1 :]) is not None
