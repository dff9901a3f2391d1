from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.engine import Sampling
from luthier.core.message import Message, user
from luthier.strategies.least_to_most import Config, read_parts, wrap


def test_parts_are_solved_in_turn_and_the_answer_is_read_off(home: Path, spy: Any) -> None:
    inner = spy(
        answers={
            "Do not solve": "1. How long is one trip?\n2. How many trips fit?\n",
            "Answer this part first": "5 minutes",
            "How many trips fit?": "3 trips",
            "Therefore": "3",
        }
    )
    engine = wrap(inner, Config(answer="number", thought_tokens=40, prompt={"instruction": "Be exact."}))
    (answer,) = engine.generate([user("Slides close in 15 minutes. How often?")], Sampling(max_new_tokens=9))
    first, second, third, last = inner.asked
    assert first[0] == Message("system", "Be exact.")
    assert "at most 4" in first[1].content
    assert second[-1].content.endswith("Answer this part first: How long is one trip?")
    assert third == (*second, Message("assistant", "5 minutes"), Message("user", "How many trips fit?"))
    assert last[: len(third)] == third
    assert last[-1].content.startswith("Therefore")
    assert [s.max_new_tokens for s in inner.samplings] == [40, 40, 40, 9]
    assert (answer.text, answer.calls) == ("3", 4)
    assert answer.reasoning == "1. How long is one trip?\n2. How many trips fit?\n\n5 minutes\n\n3 trips"


def test_questions_with_unlike_numbers_of_parts_go_together(home: Path, spy: Any) -> None:
    inner = spy(answers={"easy\n\nDo not": "one?", "hard\n\nDo not": "one?\ntwo?\nthree?"})
    answers = wrap(inner, Config()).generate(
        [user("easy"), user("hard")], Sampling()
    )  # 256 tokens for a thought and for the answer
    assert [len(batch) for batch in inner.batches] == [2, 2, 2, 1, 1]
    assert [answer.calls for answer in answers] == [3, 5]


def test_a_model_that_names_no_parts_is_asked_the_whole(home: Path, spy: Any) -> None:
    inner = spy(answers={"Do not solve": "\n \n"})
    (answer,) = wrap(inner, Config()).generate([user("q")], Sampling())
    assert inner.asked[1] == user("q")
    assert answer.calls == 3


def test_a_chinese_question_is_asked_in_chinese(home: Path, spy: Any) -> None:
    inner = spy(answers={"先不要解答": "一、每次多久？"})
    wrap(inner, Config()).generate([user("十五分钟后关门，可以滑几次？")], Sampling())
    assert "请从易到难列出" in inner.asked[0][0].content
    assert "请先回答其中这一步：" in inner.asked[1][0].content
    assert inner.asked[2][-1].content == "因此，答案是什么？只回答答案。"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1. a?\n2) b?\n(3) c?\n- d?\n* e?", ["a?", "b?", "c?", "d?"]),
        ("Here are the questions:\n\nStep 1: a?\nQuestion 2. b?\n", ["a?", "b?"]),
        ("a?\na?\nb?", ["a?", "b?"]),
        ("x" * 500, []),
        ("**a?**", ["a?"]),
        ("12 apples cost what?", ["12 apples cost what?"]),
        ("", []),
    ],
)
def test_parts_are_read_from_lists_of_many_kinds(text: str, parts: list[str]) -> None:
    assert read_parts(text, 4) == parts
