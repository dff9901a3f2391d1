from __future__ import annotations

from typing import Any

import pytest

from luthier.core import catalog
from luthier.core.errors import InputError
from luthier.scorers._score import Answer, Target
from luthier.scorers.number import Config, score

GSM8K = "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\nShe makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18"


@pytest.mark.parametrize(
    ("answer", "target", "options", "value"),
    [
        ("She makes $18 every day.", GSM8K, {}, 1.0),
        ("#### 18.00", GSM8K, {}, 1.0),
        ("18 eggs, so the answer is 36", GSM8K, {}, 0.0),
        ("1,234.5", "1234.50", {}, 1.0),
        ("三分之一", "1/3", {}, 1.0),
        ("0.333", "1/3", {}, 0.0),
        ("0.333", "1/3", {"tolerance": 0.001}, 1.0),
        ("101", "100", {"relative": 0.01}, 1.0),
        ("102", "100", {"relative": 0.01}, 0.0),
        ("-102", "-101", {"relative": 0.01}, 1.0),
        ("50%", "50", {}, 1.0),
        ("50%", "0.5", {}, 0.0),
        ("50%", "0.5", {"percent_as_fraction": True}, 1.0),
        ("百分之五十", "0.5", {"percent_as_fraction": True}, 1.0),
        ("4/5", "4", {"fractions": False, "take": "first"}, 1.0),
        ("I do not know", "3", {}, 0.0),
        ("", "3", {}, 0.0),
        ("3", "", {}, None),
        ("3", "none", {}, None),
    ],
)
def test_values(answer: str, target: str, options: dict[str, Any], value: float | None) -> None:
    assert score(Answer(answer), Target(target), Config(**options)).value == value


def test_any_accepted_number_counts() -> None:
    assert score(Answer("it was 1914"), Target("1914", ("1914", "1915")), Config()).value == 1.0
    assert score(Answer("in 1915"), Target("1914", ("1914", "1915")), Config()).detail == {
        "answer": 1915,
        "target": 1915,
    }


def test_the_detail_says_why() -> None:
    assert score(Answer("no idea"), Target("3"), Config()).detail["reason"] == "the answer has no number"
    assert score(Answer("3"), Target("x"), Config()).detail["reason"] == "the target has no number"


def test_tolerances_are_checked() -> None:
    entry = catalog.load("scorers", "number")
    for bad in (-1, float("inf"), float("nan")):
        with pytest.raises(InputError, match="tolerance"):
            entry.configure({"tolerance": bad})
