"""Which numbers a text has."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.scorers._numbers import answer_number, chinese_integer, numbers


def values(text: str, **options: Any) -> list[str]:
    return [str(one.value) + ("%" if one.percent else "") for one in numbers(text, **options)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("42", ["42"]),
        ("42.", ["42"]),
        ("1,234.50", ["2469/2"]),
        ("1,234,567 or 12,34", ["1234567", "12", "34"]),
        ("1{,}234 and 1\\,234", ["1234", "1234"]),
        ("-5, -$3, $-3, +2", ["-5", "-3", "-3", "2"]),
        ("−5", ["-5"]),
        ("10-5", ["10", "5"]),
        ("16 - 3 - 4 = 9", ["16", "3", "4", "9"]),
        ("<<16-3=13>>13", ["16", "3", "13", "13"]),
        ("USD5, 5kg, 5%", ["5", "5", "5%"]),
        ("H2O and v1.2.3", []),
        ("GPT-4", ["4"]),
        (".5 and 0.25.", ["1/2", "1/4"]),
        ("3/4", ["3/4"]),
        ("1 1/2 cups, 1½ cups, ½", ["3/2", "3/2", "1/2"]),
        ("\\frac{3}{4} and \\dfrac{-1}{2}", ["3/4", "-1/2"]),
        ("3/4/2024", ["3", "4", "2024"]),
        ("1/0", ["1", "0"]),
        ("12.5%, 50\\%, 5 percent", ["25/2%", "50%", "5%"]),
        ("1e5, 1.5E-3, 2 × 10^3, 2*10^{-2}", ["100000", "3/2000", "2000", "1/50"]),
        ("3万, 1.2亿", ["30000", "120000000"]),
        ("１２３，４５", ["123", "45"]),
        ("٣٤", ["34"]),
        ("5² is 25", ["5", "25"]),
        ("一百二十三", ["123"]),
        ("两万三, 三千五, 十万亿", ["23000", "3500", str(10**13)]),
        ("百分之五十, 三分之二, 负三点一四", ["50%", "2/3", "-157/50"]),
        ("二〇二四年十二月", ["2024", "12"]),
        ("大家一样,一定十分统一,其中之一", []),
        ("六十分之一, 一百万一千, 三分之一", ["1/60", "1001000", "1/3"]),
        ("共5个,第三步", ["5"]),
        ("", []),
        ("no number here", []),
    ],
)
def test_reading(text: str, found: list[str]) -> None:
    assert values(text) == found


def test_fractions_can_be_two_numbers() -> None:
    assert values("4/5", fractions=False) == ["4", "5"]


@pytest.mark.parametrize(
    ("text", "take", "value"),
    [
        ("She has 3 + 4 = 7 apples.\n#### 7", "auto", 7),
        ("#### 7\nOf which 5 are green.", "auto", 7),
        ("The answer is 18 dollars per day, for 365 days.", "auto", 18),
        ("The answer to the question is: 9 * 2 = 18", "auto", 18),
        ("so \\boxed{\\frac{3}{4}} of 100", "auto", Fraction(3, 4)),
        ("\\boxed{x = 5} since 10 is even", "auto", 5),
        ("\\boxed{1} no, \\boxed{2}", "auto", 2),
        ("答案是一百二十个,一共花了十元", "auto", 120),
        ("因此答案为: 36", "auto", 36),
        ("first 1 then 2", "auto", 2),
        ("first 1 then 2", "first", 1),
        ("#### 1 then 2", "last", 2),
        ("first 1 then 2", "marked", None),
        ("#### none, but 3 before", "marked", 3),
        ("####", "auto", None),
        ("the answer is not known", "auto", None),
    ],
)
def test_the_number_that_is_the_answer(text: str, take: Any, value: Any) -> None:
    found = answer_number(text, take)
    assert (found and found.value) == value


def chinese(number: int) -> str:
    """Standard numerals below 10^12, written from the rules and not from the reader."""
    digits, units = "零一二三四五六七八九", ["", "十", "百", "千"]
    if number == 0:
        return "零"

    def block(value: int) -> str:
        out, gap = "", False
        for power in (3, 2, 1, 0):
            digit = value // 10**power % 10
            if digit:
                out += ("零" if gap and out else "") + digits[digit] + units[power]
            gap = digit == 0
        return out

    parts, gap = "", False
    for power, unit in ((8, "亿"), (4, "万"), (0, "")):
        value = number // 10**power % 10**4
        if value:
            parts += ("零" if parts and (gap or value < 1000) else "") + block(value) + unit
        gap = value == 0
    return parts


@given(st.integers(0, 10**12 - 1))
def test_chinese_numerals_are_read_back(number: int) -> None:
    assert chinese_integer(chinese(number)) == number
    assert values(f"共{chinese(number)}元") == [str(number)]


@given(st.integers(-(10**15), 10**15), st.integers(0, 999))
def test_written_numbers_are_read_back(whole: int, thousandths: int) -> None:
    value = Fraction(abs(whole) * 1000 + thousandths, 1000) * (-1 if whole < 0 else 1)
    for text in (f"{whole}.{thousandths:03}", f"${whole:,}.{thousandths:03}", f"is {whole:,}.{thousandths:03}, or so"):
        assert [one.value for one in numbers(text)] == [value]


@settings(max_examples=300)
@given(
    st.text(alphabet=st.sampled_from(list("0123456789.,-+/% $eE×10^{}\\一二十百千万亿零点负分之#boxed答案是½٣１ \n")))
)
def test_anything_is_read_without_a_fault(text: str) -> None:
    for one in numbers(text):
        assert 0 <= one.start < one.end
        float(one.value)
    found = answer_number(text)
    assert (found is not None) == bool(numbers(text)) or found is None


@pytest.mark.parametrize(
    "unit", ["1", "1,111", "1/", "1 ", "-", ".1", "一", "一点", "#### ", "\\boxed{", "答案", "answer ", "½", "1e"]
)
def test_long_text_takes_no_long_time(unit: str) -> None:
    start = time.process_time()
    answer_number(unit * (100_000 // len(unit)))
    assert time.process_time() - start < 5.0
