from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from luthier.core.engine import Constraint, Sampling
from luthier.core.errors import UnsupportedError
from luthier.core.message import Image, Message, Tool, user
from luthier.gateway.access.caller import Caller
from luthier.gateway.calls import Piece
from luthier.gateway.exchange import Exchange
from luthier.gateway.layers import Ask, Layer, Question, compose
from luthier.gateway.service import Served


def question(**changes: Any) -> Question:
    return Question(
        **{"exchange": Exchange("chat", "m", Caller()), "prompts": (user("hi"),), "sampling": Sampling()} | changes
    )


def named(name: str) -> Layer:
    async def layer(question: Question, ask: Ask) -> AsyncIterator[Piece]:
        question.exchange.say(name, at="in")
        async for piece in ask(question):
            yield Piece(piece.index, f"{name}({piece.text})")

    return layer


async def innermost(question: Question) -> AsyncIterator[Piece]:
    yield Piece(0, "x")


def test_the_first_layer_is_the_outermost() -> None:
    asked = question()

    async def run() -> list[str]:
        return [piece.text async for piece in compose([named("a"), named("b")], innermost)(asked)]

    assert asyncio.run(run()) == ["a(b(x))"]
    assert list(asked.exchange.details) == ["a", "b"]


def test_without_layers_the_innermost_is_asked() -> None:
    assert compose([], innermost) is innermost


def test_a_target_fills_what_the_client_left_open(scripted: Any) -> None:
    served = Served("m", scripted(), temperature=0.0, max_new_tokens=33)
    asked = question(sampling=Sampling(temperature=0.7, max_new_tokens=5), unset=frozenset({"max_new_tokens"}))
    to = asked.to(served)
    assert (to.sampling.temperature, to.sampling.max_new_tokens, to.served) == (0.7, 33, served)
    assert asked.exchange.served is served
    assert asked.exchange.parameters == {"max_new_tokens": 33}
    assert asked.served is None, "a question does not change"


@pytest.mark.parametrize(
    ("changes", "named_in_error"),
    [
        ({"sampling": Sampling(constraint=Constraint("regex", "a+"))}, "regex"),
        ({"sampling": Sampling(tools=(Tool("f"),))}, "tools"),
        ({"sampling": Sampling(min_p=0.1, logprobs=0)}, "logprobs, min_p"),
        ({"prompts": ((Message("user", "look", images=(Image("data:image/png;base64,AA=="),)),),)}, "images"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name(scripted: Any, changes: Any, named_in_error: str) -> None:
    with pytest.raises(UnsupportedError, match=f"^{named_in_error}: scripted on engine scripted"):
        question(**changes).to(Served("m", scripted()))


def test_tools_that_may_not_be_called_ask_for_nothing(scripted: Any) -> None:
    asked = question(sampling=Sampling(tools=(Tool("f"),), tool_choice="none"))
    assert asked.to(Served("m", scripted())).sampling.tools
