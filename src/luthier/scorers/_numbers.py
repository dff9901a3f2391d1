"""Numbers in text: which ones there are, and which one is the answer.

Read are integers, decimals, thousands (``1,234.50``), signs, currencies (``-$3``), percentages, fractions and mixed numbers (``1 1/2``,
``\\frac{3}{4}``, ``½``), powers of ten (``1.5e3``, ``2 × 10^3``), 万 and 亿 after digits, other scripts' digits and full-width ones; and, in
text without digits, Chinese numerals (一百二十, 百分之五, 三分之二, 三点五). Values are exact (``Fraction``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Take = Literal["auto", "marked", "last", "first"]
LONGEST = 50_000  # characters of an answer that are read: its end, where answers stand
_MOST_DIGITS = 300  # longer runs are no quantities, and floats end at 1e308

_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
           "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}  # fmt: skip
_LATEX = re.compile(r"\\[dt]?frac\s*\{\s*(-?[\d.,]{1,300})\s*\}\s*\{\s*([\d.,]{1,300})\s*\}")
_LATEX_SPACE = re.compile(r"\\[,!;: ]|\\(?=[$%])|(?<=\d)\{,\}(?=\d)")
_AFTER_LETTERS = "(?:(?<![A-Za-z_])|(?<=USD)|(?<=EUR)|(?<=GBP)|(?<=RMB)|(?<=CNY)|(?<=JPY)|(?<=HKD)|(?<=Rs))"
_PLAIN = r"(?:\d{1,3}(?:,\d{3}){1,30}(?!,?\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]])[-+])?(?:[$€£¥₩₹]\s?(?P<inner>-)?)?{_AFTER_LETTERS}(?<!\d)(?<!\d[.])(?P<chained>(?<=\d/))?"
    rf"(?P<number>{_PLAIN})"
    r"(?:[eE](?P<e>[-+]?\d{1,3})(?!\w)|\s?[×x*·]\s?10\s?\^\s?\{?(?P<power>-?\d{1,3})\}?)?"
    r"(?:(?P<whole>\s)\s?(?P<above>\d{1,9})/(?P<below>\d{1,9})(?![/\d])|\s?/\s?(?P<under>\d{1,9}(?:\.\d{1,9})?)(?!\s?/|\.?\d))?"
    r"(?P<unit>\s?[万萬亿億]{1,3})?(?P<percent>\s?%|\s?per\s?cent\b|\s?percent\b)?"
)
_MARKER = re.compile(
    r"####|\banswer\b[^\n\d=:]{0,60}?(?:\bis\b|\bare\b|=|:)|(?:答案|结果|得数)[^\n\d=:是为]{0,20}?[是为:=]",
    re.IGNORECASE,
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_CJK_DIGIT = {**dict(zip("零一二三四五六七八九", range(10), strict=True)), "〇": 0, "两": 2, "兩": 2}
_CJK_UNIT = {"十": 10, "百": 100, "千": 1000}
_CJK_LARGE = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_CJK_ALL = "".join((*_CJK_DIGIT, *_CJK_UNIT, *_CJK_LARGE))
_CJK_NUMBER = re.compile(
    rf"(?P<minus>[负負])?(?P<whole>[{_CJK_ALL}]{{1,60}})(?:点(?P<decimals>[{''.join(_CJK_DIGIT)}]{{1,60}}))?"
)
_CJK_PARTS = re.compile(
    rf"(?P<minus>[负負])?(?P<below>百|[{_CJK_ALL}]{{1,60}})分之(?P<above>[{_CJK_ALL}]{{1,60}})(?:点(?P<decimals>[{''.join(_CJK_DIGIT)}]{{1,60}}))?"
)
_CJK_WORDS = re.compile(  # words that a numeral's character is part of
    rf"(?<![{_CJK_ALL}])(?:一(?=[共定样樣起般直些旦切致向贯生会會下边邊面方])|(?:统一|万一|十分(?!之)|唯一|第一(?=[步次]))(?![{_CJK_ALL}]))"
    r"|(?<!分)之一"
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number and where it was. ``percent``: it was written as one, and ``value`` is what stood before the sign."""

    value: Fraction
    start: int
    end: int
    percent: bool = False


def plain(text: str) -> str:
    """``text`` with digits and signs in their ASCII form and without LaTeX around them."""
    for char, fraction in _VULGAR.items():
        text = text.replace(char, f" {fraction}")
    text = "".join(_ascii(char) for char in text) if not text.isascii() else text
    return _LATEX_SPACE.sub("", _LATEX.sub(r" \1/\2", text))


def _ascii(char: str) -> str:
    if char.isascii():
        return char
    if "\uff01" <= char <= "\uff5e":  # full-width forms
        return chr(ord(char) - 0xFEE0)
    if char in "\u2212\ufe63":  # minus signs
        return "-"
    if char in "\u2044\u2215":  # fraction and division slashes
        return "/"
    digit = unicodedata.decimal(char, None)
    return char if digit is None else str(digit)


def numbers(text: str, *, fractions: bool = True) -> list[Number]:
    """Every number in ``text``, in order; Chinese numerals only where there are no digits. ``fractions`` False reads ``3/4`` as 3 and 4."""
    return _read(plain(text[-LONGEST:]), fractions)


def _read(text: str, fractions: bool) -> list[Number]:
    found = list(_digits(text, fractions))
    return found or list(_chinese(text))


def _digits(text: str, fractions: bool) -> Iterator[Number]:
    place = 0
    while (found := _NUMBER.search(text, place)) is not None:
        number, place = _number(found, fractions)
        if number is not None:
            yield number


def _number(found: re.Match[str], fractions: bool) -> tuple[Number | None, int]:
    """The number, and where to read on: after what belongs to it."""
    parts = found.groupdict()
    digits = parts["number"].replace(",", "")
    if len(digits) > _MOST_DIGITS:
        return None, found.end("number")
    value, end = Fraction(digits), found.end()
    if parts["above"] or parts["under"]:
        value, used = _fraction(value, parts, fractions)
        if not used:
            end = found.end("number")
            parts["unit"] = parts["percent"] = None
    exponent = parts["e"] or parts["power"]
    if exponent:
        value *= Fraction(10) ** int(exponent)
    for unit in (parts["unit"] or "").strip():
        value *= _CJK_LARGE[unit]
    if parts["sign"] == "-" or parts["inner"]:
        value = -value
    if abs(value) > 10**_MOST_DIGITS:
        return None, end
    return Number(value, found.start(), end, bool(parts["percent"])), end


def _fraction(value: Fraction, parts: dict[str, str | None], fractions: bool) -> tuple[Fraction, bool]:
    below = parts["below"] or parts["under"] or "0"
    if not fractions or parts["chained"] is not None or len(below) > _MOST_DIGITS or Fraction(below) == 0:
        return value, False
    if parts["above"]:
        return value + Fraction(int(parts["above"]), int(below)), True
    return value / Fraction(below), True


def _chinese(text: str) -> Iterator[Number]:
    text = _CJK_WORDS.sub(lambda found: "\0" * len(found[0]), text)
    taken = 0
    for found in _CJK_PARTS.finditer(text):
        yield from _chinese_wholes(text, taken, found.start())
        taken = found.end()
        above, below = _chinese_value(found["above"], found["decimals"]), chinese_integer(found["below"])
        percent = found["below"] == "百"
        if below:
            value = above if percent else above / below
            yield Number(-value if found["minus"] else value, found.start(), found.end(), percent)
    yield from _chinese_wholes(text, taken, len(text))


def _chinese_wholes(text: str, start: int, end: int) -> Iterator[Number]:
    for found in _CJK_NUMBER.finditer(text, start, end):
        value = _chinese_value(found["whole"], found["decimals"])
        yield Number(-value if found["minus"] else value, found.start(), found.end())


def _chinese_value(whole: str, decimals: str | None) -> Fraction:
    value = Fraction(chinese_integer(whole))
    if decimals:
        value += Fraction(int("".join(str(_CJK_DIGIT[c]) for c in decimals)), 10 ** len(decimals))
    return value


def chinese_integer(text: str) -> int:
    """The value of a Chinese numeral: 一百二十三, 二〇二四 (digit by digit), and the short forms 两万三, 一百五."""
    if all(c in _CJK_DIGIT for c in text):
        return int("".join(str(_CJK_DIGIT[c]) for c in text))
    total = section = digit = 0
    last = 1  # the unit that a digit at the end is a tenth of, as in 三千五
    for c in text:
        if c in _CJK_DIGIT:
            digit = _CJK_DIGIT[c]
            last = 1 if digit == 0 else last
        elif c in _CJK_UNIT:
            last = _CJK_UNIT[c]
            section, digit = section + (digit or 1) * last, 0
        else:
            last = _CJK_LARGE[c]
            here = section + digit
            larger = total and (total < last or not here)  # 十万亿: the whole before it is multiplied
            total = (total + here) * last if larger else total + max(here, 1) * last
            section = digit = 0
    return total + section + digit * (last // 10 if last > 10 else 1)


def answer_number(text: str, take: Take = "auto", *, fractions: bool = True) -> Number | None:
    """The number that ``text`` gives as its answer, or None.

    ``marked`` is the one after the last ``####``, in the last ``\\boxed{}``, or after the last "answer is" (答案是); ``auto`` is that one if
    there is one and else the last; ``last`` and ``first`` are by place.
    """
    text = plain(text[:LONGEST] if take == "first" else text[-LONGEST:])
    if take in ("auto", "marked"):
        marked = _marked(text, fractions)
        if marked is not None or take == "marked":
            return marked
    found = _read(text, fractions)
    if not found:
        return None
    return found[0] if take == "first" else found[-1]


def _marked(text: str, fractions: bool) -> Number | None:
    """The marked number; a marker without one after it does not count."""
    places = [(m.end(), False) for m in _MARKER.finditer(text)] + [(m.end(), True) for m in _BOXED.finditer(text)]
    for place, boxed in sorted(places, reverse=True)[:20]:
        part = _braced(text, place) if boxed else text[place : place + 2000].lstrip().split("\n", 1)[0]
        found = _read(part, fractions)
        if found and not boxed and "=" in part:  # the answer is 3 * 4 = 12
            found = _read(part.rpartition("=")[2], fractions) or found
        if found:
            return found[-1] if boxed else found[0]
    return None


def _braced(text: str, start: int) -> str:
    """What stands in the braces that were opened before ``start``."""
    depth = 1
    for end in range(start, min(len(text), start + 2000)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return text[start : start + 2000]
