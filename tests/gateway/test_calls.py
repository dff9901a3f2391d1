from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from luthier.core.engine import GENERATE, STREAM, Delta, EngineInfo, Generation, Sampling
from luthier.core.errors import EngineError, InputError
from luthier.core.message import user
from luthier.gateway.calls import Call, ClientGoneError, Piece, generate, merge_pieces, unless_gone


def run_call(work: Any, **options: Any) -> tuple[list[Any], list[Exception | None]]:
    ends: list[Exception | None] = []

    async def scenario() -> list[Any]:
        call: Call[Any] = Call(work, finished=lambda error, took: ends.append(error), **options)
        call.start()
        return [each async for each in call.results()]

    return asyncio.run(scenario()), ends


def test_results_come_in_order_then_the_end() -> None:
    assert run_call(lambda stopped: iter(range(1000))) == (list(range(1000)), [None])


def test_an_engine_error_reaches_the_reader_after_the_results() -> None:
    def work(stopped: threading.Event) -> Iterator[int]:
        yield 1
        raise InputError("too long")

    got: list[int] = []

    async def scenario() -> None:
        call: Call[int] = Call(work, finished=lambda error, took: None)
        call.start()
        async for each in call.results():
            got.append(each)

    with pytest.raises(InputError, match="too long"):
        asyncio.run(scenario())
    assert got == [1]


def test_a_bug_in_an_engine_is_logged_and_becomes_an_engine_error(caplog: pytest.LogCaptureFixture) -> None:
    def work(stopped: threading.Event) -> Iterator[int]:
        raise KeyError("secret detail")
        yield 1

    with pytest.raises(EngineError) as raised:
        run_call(work)
    assert "secret detail" not in str(raised.value)
    assert "secret detail" in caplog.text


def test_leaving_stops_the_work() -> None:
    ended = threading.Event()

    def work(stopped: threading.Event) -> Iterator[int]:
        number = 0
        while not stopped.is_set():
            yield (number := number + 1)
        ended.set()

    async def scenario() -> None:
        call: Call[int] = Call(work, finished=lambda error, took: None)
        call.start()
        results = call.results()
        assert await anext(results) == 1
        await results.aclose()

    asyncio.run(scenario())
    assert ended.wait(10)


def test_the_work_never_waits_for_its_reader() -> None:
    """All of it is made while the reader has taken nothing."""

    async def scenario() -> list[Piece]:
        done = threading.Event()

        def work(stopped: threading.Event) -> Iterator[Piece]:
            yield from (Piece(0, "x") for _ in range(5000))

        call: Call[Piece] = Call(work, finished=lambda error, took: done.set(), merge=merge_pieces)
        call.start()
        assert await asyncio.to_thread(done.wait, 10)
        return [each async for each in call.results()]

    assert asyncio.run(scenario()) == [Piece(0, "x" * 5000)]


def test_merge_pieces_keeps_choices_and_ends_apart() -> None:
    end = Generation("ab", (), (), "stop")
    made = [Piece(0, "a"), Piece(0, "b"), Piece(0, "", end), Piece(1, "c"), Piece(1, "d"), Piece(2, "e")]
    assert merge_pieces(made) == [Piece(0, "ab", end), Piece(1, "cd"), Piece(2, "e")]
    assert merge_pieces([]) == []
    assert merge_pieces([Piece(0, "a", end), Piece(0, "b")]) == [Piece(0, "a", end), Piece(0, "b")]


def sampled(engine: Any, prompts: int, n: int, **sampling: Any) -> list[Piece]:
    asked = [user(f"q{number}") for number in range(prompts)]
    pieces = sampling.pop("pieces", False)
    stopped = sampling.pop("stopped", threading.Event())
    return list(generate(engine, asked, Sampling(**sampling), n, pieces=pieces, stopped=stopped))


def test_one_whole_answer_is_streamed_so_that_it_can_be_stopped(scripted: Any) -> None:
    engine = scripted()
    made = sampled(engine, 1, 1)
    assert "".join(each.text for each in made) == "one two three"
    assert made[-1].generation is not None
    assert engine.batches == []


def test_several_whole_answers_are_one_batch(scripted: Any) -> None:
    engine = scripted()
    assert [each.index for each in sampled(engine, 2, 3, temperature=1.0)] == [0, 1, 2, 3, 4, 5]
    assert engine.batches == [6]
    assert [prompt[0].content for prompt, _ in engine.asked] == ["q0"] * 3 + ["q1"] * 3


def test_seeds_count_up_from_choice_to_choice(scripted: Any) -> None:
    engine = scripted()
    made = sampled(engine, 2, 3, temperature=1.0, seed=7)
    assert sorted(each.index for each in made) == [0, 1, 2, 3, 4, 5]
    assert [sampling.seed for _, sampling in engine.asked] == [7, 7, 8, 8, 9, 9]


def test_greedy_choices_are_equal_and_computed_once(scripted: Any) -> None:
    engine = scripted()
    assert len(sampled(engine, 2, 3)) == 6
    assert engine.batches == [2]


def test_an_engine_that_cannot_stream_answers_in_one_piece(scripted: Any) -> None:
    engine = scripted(capabilities=frozenset({GENERATE}))
    (piece,) = sampled(engine, 1, 1, pieces=True)
    assert piece.text == "one two three"


def test_a_stopped_stream_closes_the_engine_s_iterator(scripted: Any) -> None:
    stopped = threading.Event()
    engine = scripted(before=lambda number: stopped.set() if number == 1 else None)
    assert [each.text for each in sampled(engine, 1, 4, pieces=True, stopped=stopped)] == ["one", " two"]
    assert engine.ended.is_set()
    assert engine.given == 2


def test_a_stream_without_an_end_is_an_error(scripted: Any) -> None:
    class Endless(scripted):
        def stream(self, prompt: Any, sampling: Any) -> Any:
            return iter(())

    with pytest.raises(EngineError):
        sampled(Endless(), 1, 1)


def test_unless_gone() -> None:
    async def scenario() -> None:
        left = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await left.wait()
            return {"type": "http.disconnect"}

        async def answer() -> int:
            return 3

        cancelled = asyncio.Event()

        async def forever() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        assert await unless_gone(receive, answer()) == 3
        waiting = asyncio.create_task(unless_gone(receive, forever()))
        await asyncio.sleep(0)
        left.set()
        with pytest.raises(ClientGoneError):
            await waiting
        assert cancelled.is_set()
        left.clear()
        cancelled.clear()
        outer = asyncio.create_task(unless_gone(receive, forever()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        outer.cancel()
        await asyncio.gather(outer, return_exceptions=True)
        assert cancelled.is_set()

    asyncio.run(scenario())


def test_a_whole_answer_is_asked_for_whole_where_that_can_be_stopped() -> None:
    asked: list[str] = []

    class Whole:
        info = EngineInfo("m", "whole", frozenset({GENERATE, STREAM}))

        def answer(self, prompt: Any, sampling: Sampling, stopped: threading.Event) -> Generation | None:
            asked.append("answer")
            return None if sampling.seed == 7 else Generation("whole", (1,), (2,), "stop")

        def stream(self, prompt: Any, sampling: Sampling) -> Iterator[Delta]:
            asked.append("stream")
            yield Delta("streamed", Generation("streamed", (1,), (2,), "stop"))

    engine: Any = Whole()

    def texts(sampling: Sampling, *, pieces: bool) -> list[str]:
        made = generate(engine, [user("q")], sampling, 1, pieces=pieces, stopped=threading.Event())
        return [piece.text for piece in made]

    assert texts(Sampling(), pieces=False) == ["whole"]
    assert texts(Sampling(seed=7), pieces=False) == []  # stopped before it was done
    assert texts(Sampling(), pieces=True) == ["streamed"]
    assert asked == ["answer", "answer", "stream"]
