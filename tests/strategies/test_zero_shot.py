from __future__ import annotations

import threading

import numpy as np
import pytest

from luthier.core.engine import Sampling, ScoreRequest, answer_whole, check_health
from luthier.core.errors import EngineError, InputError
from luthier.core.message import Image, Message, user
from luthier.core.task import PromptTemplate
from luthier.engines.fake import Config as FakeConfig
from luthier.engines.fake import FakeEngine
from luthier.strategies._prompted import Prompted
from luthier.strategies.zero_shot import Config, wrap

PROMPT = {"instruction": "Classes: {labels}.", "input": "Message: {input}", "labels": ["a", "b"]}


class Spy(FakeEngine):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__("fake", FakeConfig())
        self.asked: list[object] = []

    def generate(self, prompts, sampling, progress=lambda *_: None):  # type: ignore[no-untyped-def]
        self.asked += prompts
        return super().generate(prompts, sampling, progress)

    def score(self, requests, progress=lambda *_: None):  # type: ignore[no-untyped-def]
        self.asked += [r.prompt for r in requests]
        return super().score(requests, progress)


def test_one_user_turn_becomes_the_templates_conversation() -> None:
    spy = Spy()
    wrap(spy, Config(prompt=PROMPT)).score([ScoreRequest(user("hello {labels}"), ("a", "b"))])
    assert spy.asked == [(Message("system", "Classes: a, b."), Message("user", "Message: hello {labels}"))]


@pytest.mark.parametrize(
    "prompt",
    [
        "raw text",
        (Message("user", "q"), Message("assistant", "a"), Message("user", "again")),
        (Message("system", "be kind"), Message("user", "q")),
        (Message("user", "one"), Message("user", "two")),
    ],
)
def test_a_prompt_in_the_callers_own_hands_passes_unchanged(prompt: object) -> None:
    spy = Spy()
    wrap(spy, Config(prompt=PROMPT)).generate([prompt], Sampling())  # type: ignore[list-item]
    assert spy.asked == [prompt]


def test_wrapping_twice_asks_as_wrapping_once() -> None:
    spy = Spy()
    wrap(wrap(spy, Config(prompt=PROMPT)), Config(prompt=PROMPT)).generate([user("q")], Sampling())
    assert len(spy.asked[0]) == 2  # type: ignore[arg-type]


def test_info_carries_the_prompts_digest_and_nothing_else_changes() -> None:
    fake = FakeEngine("fake", FakeConfig())
    wrapped = wrap(fake, Config(prompt=PROMPT))
    assert wrapped.info == fake.info.with_(prompt_digest=PromptTemplate.from_dict(PROMPT).digest)


def test_every_call_reaches_the_engine() -> None:
    fake = FakeEngine("fake", FakeConfig())
    wrapped = wrap(fake, Config(prompt=PROMPT))
    asked = PromptTemplate.from_dict(PROMPT).messages("q")
    assert wrapped.generate([user("q")], Sampling())[0].text == fake.generate([asked], Sampling())[0].text
    streamed = "".join(d.text for d in wrapped.stream(user("q"), Sampling()))
    assert streamed == fake.generate([asked], Sampling())[0].text
    assert np.array_equal(wrapped.embed(["q"]), fake.embed(["q"]))
    assert isinstance(wrapped, Prompted)
    wrapped.close()


def test_images_stand_where_they_stood_in_the_text() -> None:
    wrapped = wrap(FakeEngine("fake", FakeConfig()), Config(prompt=PROMPT))
    assert isinstance(wrapped, Prompted)
    shown = wrapped.rewrite((Message("user", "left  right", images=(Image("data:,a", 5), Image("data:,b", 11))),))
    turn = shown[-1]
    assert isinstance(turn, Message)
    assert turn.content == "Message: left  right"
    parts = turn.as_dict()["content"]
    assert [part.get("text", "image") for part in parts] == ["Message: left ", "image", " right", "image"]


def test_a_whole_answer_and_health_are_the_inner_engines() -> None:
    fake = FakeEngine("fake", FakeConfig())
    wrapped = wrap(fake, Config(prompt=PROMPT))
    asked, stopped = PromptTemplate.from_dict(PROMPT).messages("q"), threading.Event()
    answer = answer_whole(wrapped, user("q"), Sampling(), stopped)
    assert answer is not None
    assert answer.text == fake.generate([asked], Sampling())[0].text
    stopped.set()
    assert answer_whole(wrapped, user("q"), Sampling(), stopped) is None
    check_health(wrapped, 1.0)
    with pytest.raises(EngineError, match="down"):
        check_health(wrap(FakeEngine("fake", FakeConfig(fail={"": "down"})), Config(prompt=PROMPT)), 1.0)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [({"input": "no place"}, "must contain {input}"), ({"instructions": "x"}, "Did you mean 'instruction'")],
)
def test_a_prompt_that_cannot_be_used(prompt: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrap(FakeEngine("fake", FakeConfig()), Config(prompt=prompt))
