"""Words of a text, for comparing texts by what they are about: in Chinese, Japanese and Korean pairs of characters."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|\d+(?:[.,]\d+)*")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_EMPTY_WORDS = """a an the and or but if then than that this these those it its he she they we you i me him her them us my your his their our is are was
    were be been being am do does did have has had having will would can could may might shall should must of in on at to for from by with
    about into over under between as not no nor so such very more most also there here which who whom whose what when where how why all any
    each some other one"""
_EMPTY = frozenset(_EMPTY_WORDS.split())
_ENDINGS = re.compile(r"(?:ies|es|s|ing|ed|ly)$")


def content_words(text: str) -> set[str]:
    """The words that carry meaning, in small letters, without the commonest endings of English; pairs of CJK characters; numbers."""
    text = text.casefold()
    words = {_stem(word.replace(",", "")) for word in _WORD.findall(text) if word not in _EMPTY}
    for run in _WIDE.findall(text):
        words |= {run[at : at + 2] for at in range(len(run) - 1)} or {run}
    return words


def numbers(text: str) -> set[str]:
    """The numbers in it, as they are written, without thousands separators."""
    return {word.replace(",", "").rstrip(".") for word in _WORD.findall(text) if word[0].isdigit()}


def _stem(word: str) -> str:
    return _ENDINGS.sub("", word) if len(word) > 4 and not word[0].isdigit() else word
