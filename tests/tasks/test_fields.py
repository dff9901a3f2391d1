from __future__ import annotations

from typing import Any

import pytest

from luthier.data.fields import RowError
from luthier.tasks._fields import field, labelled_choices, mapping, place, shown, text, texts

LETTERS = ("A", "B", "C")


@pytest.mark.parametrize(
    ("value", "keys", "at"),
    [
        (1, LETTERS, 1),
        ("B", LETTERS, 1),
        (" B ", LETTERS, 1),
        ("2", LETTERS, 2),
        (2.0, LETTERS, 2),
        ("2", ("1", "2", "3"), 1),
        (2, ("1", "2", "3"), 1),
        (0, ("0", "1"), 0),
        ("entailment", ("entailment", "not_entailment"), 0),
    ],
)
def test_places(value: Any, keys: tuple[str, ...], at: int) -> None:
    assert place(value, "answer", keys) == at


@pytest.mark.parametrize("value", [3, -1, "D", "", None, True, 0.5, [0]])
def test_no_place(value: Any) -> None:
    with pytest.raises(RowError, match="answer must be one of A, B, C, or a number from 0 to 2; got"):
        place(value, "answer", LETTERS)


def test_texts_and_what_they_are_not() -> None:
    assert text({"n": 5}, "n") == "5" and text({"q": "", "n": 1}, "q", empty=True) == ""
    assert texts(["a", 2], "choices") == ("a", "2")
    for bad, reason in (
        ({"q": None}, "q is missing"),
        ({"q": " "}, "q is empty"),
        ({"q": []}, "q must be text"),
        ({"q": True}, "q must be text; got true"),
    ):
        with pytest.raises(RowError, match=reason):
            text(bad, "q")
    for value, reason in (("ab", "must be a list"), ([], "at least 1; got 0"), ([None], r"choices\[0\] must be text")):
        with pytest.raises(RowError, match=reason):
            texts(value, "choices")
    with pytest.raises(RowError, match="fields here: other"):
        field({"other": 1}, "q")
    with pytest.raises(RowError, match="kwargs must be an object; got 3"):
        mapping(3, "kwargs")
    assert len(shown("x" * 100)) == 60


@pytest.mark.parametrize(
    "choices",
    [{"text": ["a", "b"], "label": ["A", "B"]}, [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]],
)
def test_labelled_choices_in_both_forms(choices: Any) -> None:
    wanted = ("q", (("A", "B"), ("a", "b")))
    assert labelled_choices({"question": "q", "choices": choices}, "question") == wanted
    assert labelled_choices({"question": {"stem": "q", "choices": choices}}, "question_stem", "question") == wanted


def test_labels_that_do_not_match_their_texts() -> None:
    with pytest.raises(RowError, match=r"choices\.label must hold 2; got 1"):
        labelled_choices({"question": "q", "choices": {"text": ["a", "b"], "label": ["A"]}}, "question")
