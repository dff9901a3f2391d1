"""Engine work in a thread of its own, read from the event loop.

Engines block; the server does not. A call's thread never waits for its reader: what it makes is put aside (an answer is bounded by
its token limit, so this is too) and adjoining pieces become one when the reader is slow. A reader who leaves stops the engine at
the next token, and a slow reader holds neither the engine nor its turn.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from starlette.types import Receive

from luthier.core.engine import STREAM, Engine, Generation, Sampling, Stoppable, TokenLogprob, answer_whole
from luthier.core.errors import EngineError, LuthierError
from luthier.core.message import Prompt, ToolCall

Made = TypeVar("Made")
Result = TypeVar("Result")

logger = logging.getLogger("luthier.gateway")


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of choice ``index``, the tokens it is made of, calls that are complete; the last one of a choice carries its whole generation."""

    index: int
    text: str
    generation: Generation | None = None
    tokens: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


class ClientGoneError(Exception):
    """The client closed its connection."""


class Call(Generic[Made]):
    """``work`` in a thread. It is given an event that is set when nobody waits for the result any more.

    ``finished`` is called in that thread with the error (or None) and the seconds that it took, before the reader hears of the end.
    ``run`` begins a function in a thread (``gateway.workers``); without it the call has a new one. Belongs to the event loop that makes it.
    """

    def __init__(
        self,
        work: Callable[[threading.Event], Iterator[Made]],
        *,
        finished: Callable[[Exception | None, float], None],
        merge: Callable[[list[Made]], list[Made]] = lambda made: made,
        run: Callable[[Callable[[], object]], object] | None = None,
    ) -> None:
        self._work = work
        self._finished = finished
        self._merge = merge
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._lock = threading.Lock()
        self._made: list[Made] = []
        self._ended = False
        self._error: Exception | None = None
        self.stopped = threading.Event()
        self._begin = run or _in_new_thread

    def start(self) -> None:
        """Begin."""
        self._begin(self._run)

    def stop(self) -> None:
        """Nobody waits for the result any more."""
        self.stopped.set()

    async def results(self) -> AsyncIterator[Made]:
        """What ``work`` yields, then its error if it ended with one. Leaving the iteration stops the work."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                with self._lock:
                    made, self._made, ended = self._made, [], self._ended
                for each in self._merge(made):
                    yield each
                if ended:
                    if self._error is not None:
                        raise self._error
                    return
        finally:
            self.stop()

    def _run(self) -> None:
        start, error = time.perf_counter(), None
        try:
            for made in self._work(self.stopped):
                with self._lock:
                    first = not self._made
                    self._made.append(made)
                if first:
                    self._tell()
        except LuthierError as raised:
            error = raised
        except Exception as raised:
            logger.exception("an engine failed in a way that it should not")
            error = EngineError("the model failed on this request; the server's log says how")
            error.__cause__ = raised
        try:
            self._finished(error, time.perf_counter() - start)
        finally:
            with self._lock:
                self._ended, self._error = True, error
            self._tell()

    def _tell(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:  # the loop has ended, and every reader with it
            self.stopped.set()


def _in_new_thread(task: Callable[[], object]) -> None:
    threading.Thread(target=task, name="luthier-call", daemon=True).start()


def merge_pieces(made: list[Piece]) -> list[Piece]:
    """Adjoining pieces of one choice as one."""
    if len(made) < 2:
        return made
    out: list[Piece] = []
    run: list[Piece] = []
    for piece in made:
        if run and (run[-1].index != piece.index or run[-1].generation is not None):
            out.append(_joined(run))
            run = []
        run.append(piece)
    return [*out, _joined(run)]


def _joined(run: list[Piece]) -> Piece:
    if len(run) == 1:
        return run[0]
    return Piece(
        run[0].index,
        "".join(piece.text for piece in run),
        run[-1].generation,
        tuple(token for piece in run for token in piece.tokens),
        tuple(call for piece in run for call in piece.tool_calls),
    )


def generate(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, n: int, *, pieces: bool, stopped: threading.Event
) -> Iterator[Piece]:
    """``n`` answers to each prompt; choice ``i * n + j`` is the j-th answer to prompt i.

    One answer is streamed from the engine even when the client wants it whole, because a stream can be stopped; an engine that can stop
    without being streamed (``Stoppable``) is asked for the whole. Several whole answers go to the engine as a batch, which is faster. With a seed, answer j is drawn with ``seed + j``; greedy answers to one
    prompt are equal, so they are computed once.
    """
    if len(prompts) * n == 1 or (pieces and STREAM in engine.info.capabilities):
        for index, prompt in enumerate(prompts):
            for j in range(n):
                yield from _one(engine, prompt, _seeded(sampling, j), index * n + j, stopped, pieces=pieces)
        return
    if sampling.seed is None and sampling.temperature > 0.0:
        answers = engine.generate([prompt for prompt in prompts for _ in range(n)], sampling)
        yield from (_whole(index, answer) for index, answer in enumerate(answers))
        return
    answers = []
    for j in range(n):
        if stopped.is_set():
            return
        if j == 0 or sampling.temperature > 0.0:
            answers = engine.generate(prompts, _seeded(sampling, j))
        yield from (_whole(index * n + j, answer) for index, answer in enumerate(answers))


def _one(
    engine: Engine, prompt: Prompt, sampling: Sampling, index: int, stopped: threading.Event, *, pieces: bool
) -> Iterator[Piece]:
    if stopped.is_set():
        return
    if (not pieces and isinstance(engine, Stoppable)) or STREAM not in engine.info.capabilities:
        answer = answer_whole(engine, prompt, sampling, stopped)
        if answer is not None:
            yield _whole(index, answer)
        return
    deltas = engine.stream(prompt, sampling)
    try:
        for delta in deltas:
            yield Piece(index, delta.text, delta.generation, delta.tokens, delta.tool_calls)
            if delta.generation is not None or stopped.is_set():
                return
        raise EngineError(f"{engine.info.model} ended an answer without saying so")
    finally:
        close = getattr(deltas, "close", None)
        if close is not None:
            close()


def _whole(index: int, answer: Generation) -> Piece:
    return Piece(index, answer.text, answer, answer.tokens, answer.tool_calls)


def _seeded(sampling: Sampling, j: int) -> Sampling:
    return sampling if sampling.seed is None or j == 0 else replace(sampling, seed=(sampling.seed + j) % 2**63)


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of ``work``, or ClientGoneError as soon as the client closes its connection. The request's body must be read."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        unfinished = [each for each in (task, gone) if not each.done()]
        for each in unfinished:
            each.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
