"""Reads a judge's reply: the grade or the preference in it, however it is written.

Judges are asked for JSON, and many answer in the forms that they were trained on: ``Rating: [[7]]`` (Zheng et al., 2023), ``Score: 7/10``,
a bare number. What a reply quotes or considers comes before what it decides, so the last statement counts. A grade outside the
scale, and figures without a name that contradict each other, are no grade.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

Side: TypeAlias = Literal["A", "B", "tie"]

_NUMBER = r"[-+]?\d++(?:\.\d++)?"
_OUT_OF = r"(?:\s*(?:/|out\s+of)\s*(\d++(?:\.\d++)?))?"
_GRADES = ("rating", "score", "grade", "overall", "评分", "分数", "得分", "打分")
_WINNERS = ("winner", "better", "preference", "preferred", "choice", "verdict", "answer", "胜者", "更好")
_REASONS = ("reason", "reasoning", "explanation", "rationale", "feedback", "理由", "原因")

_THOUGHT = re.compile(r"\A.*</think(?:ing)?>|<think(?:ing)?>.*\Z", re.DOTALL | re.IGNORECASE)
_BRACKETED = re.compile(rf"\[\[\s*({_NUMBER}){_OUT_OF}\s*\]\]")
_LABELLED = re.compile(
    rf"(?:{'|'.join(_GRADES)})[\"'”]?\s*(?:\([^)\n]*\)|（[^）\n]*）)?\s*(?:is|of|为|是)?\s*[:：=]?\s*[\"'“\[(]*\s*({_NUMBER})"
    rf"(?!\s*(?:-|–|to\b|到|至)\s*\d){_OUT_OF}",
    re.IGNORECASE,
)
_FRACTION = re.compile(rf"(?<![\d./])({_NUMBER})\s*(?:/|out\s+of)\s*(\d++(?:\.\d++)?)(?![\d/])", re.IGNORECASE)
_ALONE = re.compile(rf"\s*({_NUMBER}){_OUT_OF}\s*[.。分]?\s*(?:\n|\Z)", re.IGNORECASE)

_CHOSEN = re.compile(r"\[\[\s*(A|B|C|tie)\s*\]\]", re.IGNORECASE)
_NAMED = re.compile(
    r"(?:winner|verdict|preference|choice|胜者)[\"'”]?\s*(?:is|为|是)?\s*[:：=]?\s*[\"'“\[(]*\s*"
    r"(?:(?:answer|response|assistant|回答|答案)\s*)?(A|B|tie)\b",
    re.IGNORECASE,
)
_PHRASE = re.compile(
    r"(?:answer|response|assistant|output|回答|答案)\s*\(?([AB])\)?\s*(?:is\s+(?:clearly\s+|slightly\s+|much\s+)?(?:better|superior)|更好|较好)",
    re.IGNORECASE,
)
_WORDS: Mapping[str, Side] = {
    "a": "A",
    "first": "A",
    "1": "A",
    "b": "B",
    "second": "B",
    "2": "B",
    "c": "tie",
    "tie": "tie",
    "equal": "tie",
    "draw": "tie",
    "both": "tie",
    "neither": "tie",
    "平局": "tie",
}


def read_grade(reply: str, scale: tuple[float, float]) -> tuple[float | None, str]:
    """(grade, reason): None when the reply holds no grade on ``scale``. The reason is the whole reply where none is marked."""
    text = without_thoughts(reply).replace("**", "").strip()
    for found in reversed(_objects(text)):
        value = _first(found, _GRADES)
        if value is not None:
            return _on_scale(value, scale), str(_first(found, _REASONS) or "")
    for pattern in (_BRACKETED, _LABELLED):
        stated: list[tuple[str, str]] = pattern.findall(text)
        if stated:
            number, whole = stated[-1]
            return _fraction(number, whole, scale), text
    alone = _ALONE.match(text)
    if alone:
        return _fraction(alone[1], alone[2] or "", scale), text
    parts = {_fraction(number, whole, scale) for number, whole in _FRACTION.findall(text)} - {None}
    return (parts.pop() if len(parts) == 1 else None), text


def read_preference(reply: str) -> tuple[Side | None, str]:
    """(A, B or tie, reason): None when the reply does not say, or says two things."""
    text = without_thoughts(reply).replace("**", "").strip()
    for found in reversed(_objects(text)):
        value = _first(found, _WINNERS)
        if value is not None:
            return _side(str(value)), str(_first(found, _REASONS) or "")
    for pattern in (_CHOSEN, _NAMED):
        stated = pattern.findall(text)
        if stated:
            return _side(stated[-1]), text
    if _side(text) is not None:
        return _side(text), text
    sides = {side.upper() for side in _PHRASE.findall(text)}
    return (_side(sides.pop()) if len(sides) == 1 else None), text


def without_thoughts(reply: str) -> str:
    """``reply`` without what a reasoning model writes between think tags first; nothing is left of one that was cut off in them."""
    return _THOUGHT.sub("", reply)


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in ``text``, outermost ones, in order."""
    decoder, found, at = json.JSONDecoder(), [], text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            found.append(value)
        at = text.find("{", end)
    return found


def _first(found: Mapping[str, Any], keys: tuple[str, ...]) -> Any | None:
    lower = {str(key).lower().strip(): value for key, value in found.items()}
    return next((lower[key] for key in keys if lower.get(key) is not None), None)


def _on_scale(value: Any, scale: tuple[float, float]) -> float | None:
    if isinstance(value, str):
        whole = re.fullmatch(rf"\s*({_NUMBER}){_OUT_OF}\s*", value)
        return _fraction(whole[1], whole[2] or "", scale) if whole else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value) if scale[0] <= value <= scale[1] else None


def _fraction(number: str, whole: str, scale: tuple[float, float]) -> float | None:
    """``number``, unless it is "out of" something else than the scale's end."""
    if whole and float(whole) != scale[1]:
        return None
    return _on_scale(float(number), scale)


def _side(text: str) -> Side | None:
    words = re.sub(r"[^\w\s]|_", " ", text.lower()).split()
    named = [word for word in words if word not in ("answer", "response", "assistant", "model", "option")]
    return _WORDS.get(named[0]) if len(named) == 1 else None
