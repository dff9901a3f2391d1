"""What is asked in a row, and what a good answer to it is."""

from __future__ import annotations

from luthier.core.dataset import Example
from luthier.core.message import Message, user
from luthier.core.score import Target, asked_of, target_of


def test_the_target_of_each_kind_of_row() -> None:
    question = Example("1", user("2+2?"), target="4", references=("4", "four"), meta={"level": 1})
    assert asked_of(question) == (user("2+2?"), target_of(question))
    assert target_of(question) == Target("4", ("4", "four"), (), (), "2+2?", {"level": 1})
    chat = Example("2", (*user("a"), Message("assistant", "b"), *user("c"), Message("assistant", "d")))
    prompt, target = asked_of(chat)
    assert prompt == chat.messages[:3] and (target.text, target.input) == ("d", "c")
    pair = Example("3", user("a"), chosen=(Message("assistant", "good"),), rejected=(Message("assistant", "bad"),))
    assert asked_of(pair)[1].text == "good"
    assert asked_of(Example("4", user("a")))[1].text == ""
