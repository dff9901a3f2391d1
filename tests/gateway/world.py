"""A gateway without HTTP, threads or time: scripted targets behind a real router, on a clock that jumps to what is next."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.gateway.conftest import Scripted

from luthier.core.engine import Generation, Sampling
from luthier.core.errors import LuthierError
from luthier.core.message import Prompt, user
from luthier.gateway.access.caller import Caller
from luthier.gateway.access.keys import Keys
from luthier.gateway.calls import Piece
from luthier.gateway.config import read_config
from luthier.gateway.exchange import Exchange
from luthier.gateway.layers import Question
from luthier.gateway.service import Service
from luthier.gateway.targets.gate import Turn
from luthier.gateway.targets.registry import ModelConfig, Registry
from luthier.gateway.targets.router import Router
from luthier.gateway.targets.served import Served
from luthier.store.database import open_store

Step = str | float | Exception | Generation
"""A piece of text, seconds that pass, an error, or the end of the answer."""

LONG_S = 10.0


class _Jumping(selectors.DefaultSelector):
    """Instead of waiting, moves the clock. Without anything to wait for it waits for threads, really."""

    loop: ClockLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            found = super().select(LONG_S)
            assert found, "nothing will ever happen any more"
            return found
        found = super().select(0)
        if not found and timeout > 0:
            self.loop.seconds += timeout
        return found


class ClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while nothing else can happen."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        selector = _Jumping()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.seconds


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of ``work`` on a jumping clock."""
    with asyncio.Runner(loop_factory=ClockLoop) as runner:
        return runner.run(work)


def said(text: str, *, tokens: int = 2, prompt: int = 3) -> Generation:
    """The end of an answer."""
    return Generation(text, tuple(range(tokens)), (1,), "stop", prompt_tokens=prompt, completion_tokens=tokens)


def answer(*steps: Step) -> list[Step]:
    """What a target does: ``steps``, then the end of the answer with the text of them."""
    text = "".join(step for step in steps if isinstance(step, str))
    return [*steps, said(text)]


@dataclass
class Heard:
    """What a request came to."""

    text: str
    error: LuthierError | None
    exchange: Exchange
    took_s: float

    @property
    def route(self) -> list[dict[str, Any]]:
        return self.exchange.details.get("route", [])

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        """(target, outcome) of every attempt."""
        return [(each["target"], each["outcome"]) for each in self.route]


@dataclass
class World:
    """``scripts``: what each target does, call by call; the last script repeats. A function is asked for one with (served, question)."""

    service: Service
    scripts: dict[str, Sequence[list[Step]] | Callable[[Served, Question], list[Step]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    running: int = 0
    stopped: int = 0

    @property
    def router(self) -> Router:
        return self.service.router

    async def ask(self, model: str, *, stream: bool = True, caller: Caller | None = None, **more: Any) -> Heard:
        """Put a question to a model or a route."""
        prompt: Prompt = more.pop("prompt", user("hello"))
        exchange = Exchange("chat", model, caller or Caller(), ((),), session=more.pop("session", ""))
        exchange.priority = more.pop("priority", 0)
        exchange.parameters |= more.pop("parameters", {})
        question = Question(exchange, (prompt,), more.pop("sampling", Sampling()), stream=stream, **more)
        start, text, error = asyncio.get_running_loop().time(), "", None
        try:
            async for piece in self.router.ask(question, lambda served, turn: self._begin(question, served, turn)):
                exchange.note(piece)
                text += piece.text
        except LuthierError as raised:
            error = raised
        heard = Heard(text, error, exchange, asyncio.get_running_loop().time() - start)
        exchange.finish(error or "")
        return heard

    def _begin(self, question: Question, served: Served, turn: Turn) -> AsyncIterator[Piece]:
        return self._answer(question.to(served, turn), served, turn)

    async def _answer(self, question: Question, served: Served, turn: Turn) -> AsyncIterator[Piece]:
        gate = served.gate or self.service.gate
        await gate.enter(turn)
        script = self.scripts.get(served.name, [answer(served.name)])
        if callable(script):
            steps = script(served, question)
        else:
            steps = script[min(self.asked.count(served.name), len(script) - 1)]
        self.asked.append(served.name)
        self.running += 1
        ended = False
        try:
            for step in steps:
                if isinstance(step, Exception):
                    ended = True
                    raise step
                if isinstance(step, str):
                    yield Piece(0, step)
                elif isinstance(step, Generation):
                    ended = True
                    yield Piece(0, "", step)
                else:
                    await asyncio.sleep(step)
        finally:
            self.running -= 1
            self.stopped += not ended
            gate.leave(0.1)


def world(
    folder: Path, models: dict[str, Any], routes: dict[str, Any] | None = None, *, seed: int = 0, concurrent: int = 1000
) -> World:
    """A gateway over scripted engines: ``models`` are sections, or lists of engines with one (``(engines, section)``). Call it in a loop."""
    loop = asyncio.get_running_loop()
    store = open_store(folder)
    registry = Registry(store, now=loop.time)
    for name, given in models.items():
        engines, section = given if isinstance(given, tuple) else ([Scripted(name=name)], given)
        registry.show([registry.hold(name, engines, ModelConfig(**section))])
    service = Service.open(registry, store, Keys(), max_concurrent=concurrent, max_queue=concurrent)
    service.gate._now = loop.time
    service.router = Router(service, now=loop.time, draw=random.Random(seed))
    service.router.routes = service.router.built(read_config({"routes": routes or {}}).routes)
    return World(service)
