"""The bottom of the layers: a question that has its target is answered by that engine, in a thread, when it is its turn."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from luthier.core.errors import LuthierError
from luthier.gateway.calls import Call, Piece, generate, merge_pieces
from luthier.gateway.targets.gate import Turn

if TYPE_CHECKING:
    from luthier.gateway.layers import Question
    from luthier.gateway.service import Served, Service

Made = TypeVar("Made")

logger = logging.getLogger("luthier.gateway")


async def answers(service: Service, question: Question) -> AsyncIterator[Piece]:
    """The pieces of all answers to ``question``, as the engine makes them. Leaving the iteration stops the engine at its next token.

    The exchange is told of each attempt under ``attempts``: the model, when it began, waited, gave its first piece and ended. Raises
    RequestError when the server is full or stops, LuthierError for what the engine refuses or fails at.
    """
    served = question.served
    assert served is not None  # a route comes before
    engine, prompts, sampling = served.engine, question.prompts, question.sampling

    def work(stopped: threading.Event) -> Iterator[Piece]:
        return generate(engine, prompts, sampling, question.n, pieces=question.stream, stopped=stopped)

    turn = question.turn or Turn(question.exchange.caller.tenant, question.exchange.priority)
    start, began = question.exchange.start, time.perf_counter()
    said: dict[str, object] = {"model": served.name, "began_s": round(began - start, 6)}
    ended = "left"
    try:
        async for piece in call(service, served, work, turn=turn, merge=merge_pieces, told=said):
            if "first_s" not in said:
                said["first_s"] = round(time.perf_counter() - began, 6)
            yield piece
        ended = ""
    except LuthierError as error:
        ended = error.message
        raise
    finally:
        question.exchange.say("attempts", **said, took_s=round(time.perf_counter() - began, 6), error=ended)


async def call(
    service: Service,
    served: Served,
    work: Callable[[threading.Event], Iterator[Made]],
    *,
    turn: Turn | None = None,
    merge: Callable[[list[Made]], list[Made]] = lambda made: made,
    told: dict[str, object] | None = None,
) -> AsyncIterator[Made]:
    """What ``work`` yields in a thread, after a turn at the gate; the turn is given back when the thread is done.

    ``served`` stays open until then, even when it is taken out of service meanwhile. ``told`` is given ``waited_s``, the seconds before
    the turn came.
    """
    gate, began = served.gate or service.gate, time.perf_counter()
    served.use.begin()
    try:
        await gate.enter(turn)
    except BaseException:
        served.use.end()
        raise
    waited_s = time.perf_counter() - began
    service.watch.waited(waited_s)
    if told is not None:
        told["waited_s"] = round(waited_s, 6)
    loop = asyncio.get_running_loop()

    def leave(took_s: float) -> None:
        gate.leave(took_s)
        served.use.end()

    def finished(error: Exception | None, took_s: float) -> None:
        try:
            loop.call_soon_threadsafe(leave, took_s)
        except RuntimeError:
            logger.debug("a call ended after the server; nobody waits for its turn")

    running: Call[Made] = Call(work, finished=finished, merge=merge, run=service.workers.run)
    running.start()
    results = running.results()
    try:
        async for made in results:
            yield made
    finally:
        running.stop()
