"""Rows in words: a model's sentences where they say nothing that the rows do not, else a plain statement."""

from __future__ import annotations

import re
from typing import Any

from luthier.apps.sql.limits import Result
from luthier.apps.sql.prompts import language_of

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_NOTHING = {"en": "No rows match: the query returned nothing.", "zh": "没有符合条件的数据:查询结果为空。"}
_ROWS = {"en": "The query returned {count} rows.", "zh": "查询返回了{count}行。"}
_CUT = {
    "en": "The query returned more than {count} rows; the first {count} are shown.",
    "zh": "查询结果超过{count}行,只显示前{count}行。",
}


def plain(question: str, result: Result) -> str:
    """What can be said of a result without a model: its one row, or how many there are."""
    language = language_of(question)
    if not result.rows:
        return _NOTHING[language]
    if result.cut:
        return _CUT[language].format(count=len(result.rows))
    if len(result.rows) == 1 and len(result.columns) <= 8:
        cells = zip(result.columns, result.rows[0], strict=False)
        return "; ".join(f"{name}: {'NULL' if value is None else value}" for name, value in cells)
    return _ROWS[language].format(count=len(result.rows))


def grounded(text: str, question: str, result: Result) -> bool:
    """Whether ``text`` is no query, and each number in it is one of the result's (rounded as far as it is written), of the question's, or the count of rows."""
    if "```" in text or re.match(r"\s*(?:SELECT|WITH)\b", text):
        return False
    known = [float(len(result.rows))]
    for value in [*result.columns, *(cell for row in result.rows for cell in row), question]:
        known += _numbers(value)
    return all(_among(written, known) for written in _NUMBER.findall(text))


def _numbers(value: Any) -> list[float]:
    if isinstance(value, bool) or value is None:
        return []
    try:
        return [float(value)]
    except (TypeError, ValueError, OverflowError):
        return [float(each.replace(",", "")) for each in _NUMBER.findall(str(value))]


def _among(written: str, known: list[float]) -> bool:
    number = float(written.replace(",", ""))
    places = len(written.partition(".")[2])
    near = 0.5 * 10.0**-places + 1e-9
    return any(abs(abs(number) - abs(value)) <= near for value in known)
