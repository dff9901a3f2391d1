from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.scorers._score import Answer, Target
from luthier.scorers.exact import Config, normalise, score


@pytest.mark.parametrize(
    ("answer", "target", "options", "value"),
    [
        ("42", "42", {}, 1.0),
        (" 42\n", "42", {}, 1.0),
        (" 42", "42", {"strip": False}, 0.0),
        ("two  words", "two words", {}, 1.0),
        ("Refund", "refund", {}, 0.0),
        ("Refund", "refund", {"casefold": True}, 1.0),
        ("STRASSE", "straße", {"casefold": True}, 1.0),
        ("refund.", "refund", {}, 0.0),
        ("refund.", "refund", {"punctuation": True}, 1.0),
        ("instrument_fault", "instrument fault", {"punctuation": True}, 1.0),
        ("42%", "42", {"punctuation": True}, 1.0),
        ("退款。", "退款", {"punctuation": True}, 1.0),
        ("cafe\u0301", "caf\u00e9", {}, 1.0),
        ("", "", {}, 1.0),
        ("", "x", {}, 0.0),
    ],
)
def test_normalisation(answer: str, target: str, options: dict[str, bool], value: float) -> None:
    assert score(Answer(answer), Target(target), Config(**options)).value == value


def test_the_detail_shows_what_was_compared() -> None:
    assert score(Answer("A. "), Target("a"), Config(casefold=True, punctuation=True)).detail == {
        "answer": "a",
        "target": "a",
    }


def test_any_accepted_answer_counts() -> None:
    target = Target("car", ("car", "automobile"))
    assert score(Answer(" automobile"), target, Config()).value == 1.0
    assert score(Answer("bus"), target, Config()).detail == {"answer": "bus", "target": "car"}


@given(st.text(), st.builds(Config, strip=st.booleans(), casefold=st.booleans(), punctuation=st.booleans()))
def test_normalising_twice_changes_nothing(text: str, config: Config) -> None:
    once = normalise(text, config)
    assert normalise(once, config) == once
    assert score(Answer(text), Target(once), config).value == 1.0
