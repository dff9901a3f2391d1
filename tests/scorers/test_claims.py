from __future__ import annotations

from collections.abc import Callable

import pytest

from luthier.scorers._claims import Statement, cited, coverage, says_not_found, statements
from luthier.scorers._score import Answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris is the capital [1]. It is old [2][3].", [("Paris is the capital.", (1,)), ("It is old.", (2, 3))]),
        ("Paris is the capital. [1] It is old. [2, 4]", [("Paris is the capital.", (1,)), ("It is old.", (2, 4))]),
        ("It is so [1-3].", [("It is so.", (1, 2, 3))]),
        ("首都是北京【1】。人口很多[2]。", [("首都是北京。", (1,)), ("人口很多。", (2,))]),
        ("No mark at all", [("No mark at all", ())]),
        ("", []),
        ("[1]", []),
    ],
)
def test_statements(text: str, expected: list[tuple[str, tuple[int, ...]]]) -> None:
    assert statements(text) == [Statement(*each) for each in expected]


def test_citations_without_marks_are_of_the_whole_answer(shown: Callable[..., Answer]) -> None:
    answer = shown("One thing. Another thing.", ["a", "b"], cites=[2])
    assert [(text, [hit.chunk.text for hit in hits if hit]) for text, hits in cited(answer)] == [
        ("One thing.", ["b"]),
        ("Another thing.", ["b"]),
    ]


def test_a_number_that_is_no_passage(shown: Callable[..., Answer]) -> None:
    assert cited(shown("So it is [7].", ["a"], cites=[1])) == [("So it is.", [None])]


@pytest.mark.parametrize(
    "text",
    ["", "  ", "This is not in the documents.", "The documents do not say when.", "I could not find it.", "Unanswerable",
     "There is not enough information to tell.", "文档中没有相关内容。", "根据资料无法回答这个问题。", "文中未提及。"],
)  # fmt: skip
def test_refusals(text: str) -> None:
    assert says_not_found(text)


@pytest.mark.parametrize(
    "text",
    [
        "In 1833.",
        "It does not rain there in May.",
        "他没有去北京。",
        "No, never. It is not in the list of cities I know.",
    ],
)
def test_answers_that_are_no_refusals(text: str) -> None:
    assert not says_not_found(text)


def test_coverage() -> None:
    assert coverage("The river Elbe", "an ELBE, or another river") == 1.0
    assert coverage("The river Rhine", "the river Elbe") == 0.5
    assert coverage("长江很长", "长江") == pytest.approx(2 / 3)
    assert coverage("...", "x") == 0.0
