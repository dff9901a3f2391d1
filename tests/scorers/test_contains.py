from __future__ import annotations

from typing import Any

import pytest

from luthier.scorers._score import Answer, Target
from luthier.scorers.contains import Config, score


@pytest.mark.parametrize(
    ("answer", "target", "options", "value"),
    [
        ("The capital is Paris, of course.", "paris", {}, 1.0),
        ("The capital is Paris.", "paris", {"casefold": False}, 0.0),
        ("答案是北京市。", "北京", {}, 1.0),
        ("a  b\nc", "b c", {}, 1.0),
        ("cart", "car", {}, 1.0),
        ("cart", "car", {"whole_words": True}, 0.0),
        ("a car.", "car", {"whole_words": True}, 1.0),
        ("cart or car", "car", {"whole_words": True}, 1.0),
        ("在北京市内", "北京", {"whole_words": True}, 1.0),
        ("well-known", "well known", {"punctuation": True}, 1.0),
        ("", "x", {}, 0.0),
        ("anything", "", {}, None),
        ("anything", "...", {"punctuation": True}, None),
    ],
)
def test_values(answer: str, target: str, options: dict[str, Any], value: float | None) -> None:
    assert score(Answer(answer), Target(target), Config(**options)).value == value


def test_any_or_all_of_the_references() -> None:
    target = Target("red", ("red", "green", "blue"))
    assert score(Answer("green grass"), target, Config()).value == 1.0
    assert score(Answer("green grass"), target, Config(which="all")).value == pytest.approx(1 / 3)
    assert score(Answer("red, green and blue"), target, Config(which="all")).value == 1.0
    assert score(Answer("green grass"), target, Config()).detail == {"found": ["green"]}
