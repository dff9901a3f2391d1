from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.strategies._judge_reply import read_grade, read_preference

SCALE = (1.0, 10.0)


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"reason": "good", "rating": 7}', 7.0),
        ('{"rating": "7"}', 7.0),
        ('{"Rating": 7.5, "x": {"rating": 1}}', 7.5),
        ('{"rating": "7/10"}', 7.0),
        ('Sure!\n```json\n{"reason": "a {brace}", "score": 3}\n```', 3.0),
        ('{"rating": 2} no, on reflection {"rating": 8}', 8.0),
        ("{'rating': 7, 'reason': 'single quotes'}", 7.0),
        ('{"reason": "cut off", "rating": 6', 6.0),
        ("Rating: [[7]]", 7.0),
        ("I first thought [[3]]. Rating: [[ 7.5 ]].", 7.5),
        ("Score: 7/10", 7.0),
        ("**Rating:** 7", 7.0),
        ("Overall rating (1-10): 8", 8.0),
        ("The rating is 9.", 9.0),
        ("I give it a score of 4 out of 10.", 4.0),
        ("评分：8分", 8.0),
        ("7", 7.0),
        ("7.", 7.0),
        ("7/10", 7.0),
        ("8\n\nThe answer is right.", 8.0),
        ("It deserves 6/10 because it is short.", 6.0),
        ("<think>maybe [[2]]</think>[[9]]", 9.0),
        ("maybe [[2]]\n</think>\n[[9]]", 9.0),  # the prompt's template opened the thought
        ("", None),
        ("I like it.", None),
        ("[[11]]", None),
        ("[[0]]", None),
        ("Rating: -3", None),
        ('{"rating": true}', None),
        ('{"rating": NaN}', None),
        ('{"rating": 1e999}', None),
        ('{"rating": null}', None),
        ('{"rating": [7]}', None),
        ("Score: 4/5", None),  # another scale
        ("Rating: 1-10", None),  # the scale, not a grade
        ("Helpful 7/10, correct 3/10.", None),  # two grades without a verdict
        ("There are 7 reasons.", None),
        ("1. First, the answer is wrong.", None),
        ("<think>[[8]] I think that", None),  # cut off before the verdict
        ("{" * 5000, None),
    ],
)
def test_grades(reply: str, value: float | None) -> None:
    assert read_grade(reply, SCALE)[0] == value


@pytest.mark.parametrize(
    ("reply", "side"),
    [
        ('{"reason": "x", "winner": "A"}', "A"),
        ('{"winner": "answer_b"}', "B"),
        ('{"winner": "Tie"}', "tie"),
        ("[[A]]", "A"),
        ("At first [[A]], but no: [[B]]", "B"),
        ("[[C]]", "tie"),
        ("[[tie]]", "tie"),
        ("Winner: B", "B"),
        ("My verdict is **Answer A**.", "A"),
        ("B", "B"),
        ("b.", "B"),
        ("Answer A", "A"),
        ("tie", "tie"),
        ("Assistant B is clearly better, as it says why.", "B"),
        ("回答A更好", "A"),
        ("Answer A is better here, answer B is better there.", None),
        ("A or B", None),
        ("Both answers have merits.", None),
        ('{"winner": "nobody"}', None),
        ("", None),
    ],
)
def test_preferences(reply: str, side: str | None) -> None:
    assert read_preference(reply)[0] == side


def test_the_reason_is_the_marked_one_or_the_whole_reply() -> None:
    assert read_grade('{"reason": "short", "rating": 7}', SCALE) == (7.0, "short")
    assert read_grade("Too short. Rating: [[7]]", SCALE) == (7.0, "Too short. Rating: [[7]]")


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    value, _ = read_grade(text, SCALE)
    assert value is None or 1 <= value <= 10
    assert read_preference(text)[0] in ("A", "B", "tie", None)


@given(st.text(), st.integers(1, 10), st.booleans())
def test_what_was_asked_for_is_always_read(reason: str, rating: int, ascii_only: bool) -> None:
    reply = json.dumps({"reason": reason, "rating": rating}, ensure_ascii=ascii_only)
    if "<think" not in reason.lower():
        assert read_grade(reply, SCALE)[0] == rating
