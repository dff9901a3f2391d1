"""llama.cpp's process: it starts, is shared, changes adapters, dies and comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.engines.sharp import EXACT, GREEDY, QUESTIONS, adapt, decoder

from luthier.core.engine import Engine, Sampling, answer_whole, check_health
from luthier.core.errors import EngineError, InputError, MismatchError
from luthier.core.message import user
from luthier.engines import _llamacpp_server as module
from luthier.engines._open import open_engine, open_many
from luthier.engines.llamacpp import slots
from luthier.models.pull import pull
from luthier.store.database import open_store

LONG = Sampling(max_new_tokens=400)


def opened_as(opened: list[Engine], name: str, **options: Any) -> Any:
    engine = open_engine(open_store(), name, "llamacpp", EXACT | options)
    opened.append(engine)
    return engine


def process_of(engine: Any) -> subprocess.Popen[str]:
    running = engine._server._running
    assert running is not None
    process: subprocess.Popen[str] = running.process
    return process


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What servers were started with."""
    made: list[Any] = []
    start = module._start
    monkeypatch.setattr(module, "_start", lambda *a: made.append(a) or start(*a))
    return made


def test_a_killed_server_fails_its_requests_cleanly_and_is_started_again(
    sharp: str, opened: list[Engine], starts: list[Any]
) -> None:
    engine = opened_as(opened, sharp)
    before = engine.generate(QUESTIONS[:1], GREEDY)[0].token_ids
    stream = engine.stream(QUESTIONS[0], LONG)
    next(stream)
    process = process_of(engine)
    process.kill()
    with pytest.raises(EngineError, match=r"ended \(signal SIGKILL\)|broke off") as raised:
        list(stream)
    assert raised.value.retryable
    process.wait(20)
    assert engine.generate(QUESTIONS[:1], GREEDY)[0].token_ids == before
    check_health(engine, 20.0)
    process_of(engine).kill()
    process_of(engine).wait(20)
    check_health(engine, 20.0)  # starts it, so that a pool that asks only for its health does not lose it for good
    assert len(starts) == 3


def test_killed_again_and_again_under_load_every_request_ends(sharp: str, opened: list[Engine]) -> None:
    engine = opened_as(opened, sharp)
    expected = [engine.generate([prompt], GREEDY)[0].token_ids for prompt in QUESTIONS]
    answered = threading.Semaphore(0)

    def one(number: int) -> Any:
        try:
            return engine.generate([QUESTIONS[number % 4]], GREEDY)[0].token_ids
        except EngineError as error:
            return error
        finally:
            answered.release()

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(one, number) for number in range(60)]
        for _ in range(3):
            for _ in range(10):
                assert answered.acquire(timeout=60)
            running = engine._server._running
            if running is not None:
                running.process.kill()
        results = [each.result(60) for each in asked]
    errors = [each for each in results if isinstance(each, EngineError)]
    assert all(error.retryable for error in errors)
    assert [
        each for n, each in enumerate(results) if not isinstance(each, EngineError) and each != expected[n % 4]
    ] == []
    assert len(errors) < 40


def test_ctrl_c_and_sigterm_are_not_for_the_server(sharp: str, opened: list[Engine]) -> None:
    engine = opened_as(opened, sharp)
    engine.generate(QUESTIONS[:1], GREEDY)
    process = process_of(engine)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGTERM)
    assert engine.generate(QUESTIONS[:1], GREEDY)[0].completion_tokens
    assert process.poll() is None
    assert os.getsid(process.pid) != os.getsid(0)


def test_it_ends_with_the_process_that_started_it(sharp: str, opened: list[Engine]) -> None:
    engine = opened_as(opened, sharp)
    engine.generate(QUESTIONS[:1], GREEDY)
    process = process_of(engine)
    assert process.stdin is not None
    process.stdin.close()  # what the system does when this process is killed
    assert process.wait(20) == 0


def test_adapters_that_come_and_go_under_load_drop_no_request_and_leave_no_server(
    sharp: str, opened: list[Engine], starts: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store, shared = open_store(), dict[Any, Any]()
    names = [adapt(sharp, f"adapter-{i}", i).name for i in range(3)]
    base = open_engine(store, sharp, "llamacpp", EXACT, shared=shared)
    opened.append(base)
    alone = {name: opened_as(opened, name) for name in (sharp, *names)}
    expected = {name: engine.generate(QUESTIONS, GREEDY) for name, engine in alone.items()}
    for engine in alone.values():
        engine.close()
    starts.clear()
    stop = threading.Event()

    def load() -> int:
        """How many answers were right; raises for one that failed."""
        number = 0
        while not stop.is_set():
            number += 1
            got = base.generate([QUESTIONS[number % 4]], GREEDY)[0].token_ids
            assert got == expected[sharp][number % 4].token_ids
        return number

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(load) for _ in range(2)]
        try:
            for name in names:  # one comes, answers and goes, then the next
                engine = open_engine(store, name, "llamacpp", EXACT, shared=shared)
                made = engine.generate(QUESTIONS, GREEDY)
                assert [g.token_ids for g in made] == [g.token_ids for g in expected[name]]
                engine.close()
                with pytest.raises(EngineError, match="closed"):
                    engine.generate(QUESTIONS[:1], GREEDY)
        finally:
            stop.set()
        assert all(each.result(60) > 0 for each in running)
    assert [len(loras) for _, loras, _ in starts] == [0, 1, 1, 1]  # an adapter that left is not loaded again
    assert len(list(tmp_path.glob("luthier-*"))) == 1, "the servers before the last one ended"


def test_others_are_answered_while_the_server_for_a_new_adapter_starts(
    sharp: str, opened: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, shared = open_store(), dict[Any, Any]()
    base = open_engine(store, sharp, "llamacpp", EXACT, shared=shared)
    opened.append(base)
    expected = base.generate(QUESTIONS[:1], GREEDY)
    name = adapt(sharp, "late", 1).name
    begun, go, start = threading.Event(), threading.Event(), module._start

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return start(*arguments)

    monkeypatch.setattr(module, "_start", slow)
    late = open_engine(store, name, "llamacpp", EXACT, shared=shared)
    opened.append(late)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(late.generate, QUESTIONS[:1], GREEDY)
        assert begun.wait(60)
        assert base.generate(QUESTIONS[:1], GREEDY)[0].token_ids == expected[0].token_ids
        assert not asked.done()
        go.set()
        assert asked.result(60)[0].completion_tokens


def test_a_whole_answer_that_is_stopped_frees_its_place(sharp: str, opened: list[Engine]) -> None:
    engine = opened_as(opened, sharp, parallel=1, context_length=512)
    stopped, done = threading.Event(), list[Any]()
    thread = threading.Thread(target=lambda: done.append(answer_whole(engine, QUESTIONS[0], LONG, stopped)))
    thread.start()
    stopped.set()
    thread.join(60)
    assert done == [None] or done[0].completion_tokens == 400  # it may have been quicker
    assert engine.generate(QUESTIONS[:1], Sampling(max_new_tokens=1))[0].completion_tokens == 1
    whole = answer_whole(engine, QUESTIONS[0], GREEDY, threading.Event())
    assert whole is not None
    assert whole.token_ids == engine.generate(QUESTIONS[:1], GREEDY)[0].token_ids


def test_silence_is_an_error_that_may_be_tried_again(sharp: str, opened: list[Engine]) -> None:
    engine = opened_as(opened, sharp, timeout_s=0.3)
    engine.generate(QUESTIONS[:1], Sampling(max_new_tokens=1))
    process = process_of(engine)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        calls: list[Callable[[], Any]] = [
            lambda: engine.generate(QUESTIONS[:1], GREEDY),
            lambda: engine.answer(QUESTIONS[0], GREEDY, threading.Event()),
            lambda: list(engine.stream(QUESTIONS[0], GREEDY)),
        ]
        for call in calls:
            with pytest.raises(EngineError, match=r"said nothing for 0\.3 s") as raised:
                call()
            assert raised.value.retryable
        with pytest.raises(EngineError):
            check_health(engine, 0.1)
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_a_common_beginning_is_read_once_whichever_place_answers(sharp: str, opened: list[Engine]) -> None:
    engine = opened_as(opened, sharp, parallel=2)
    system = "Be brief. " * 40
    prompts = [(QUESTIONS[2][0].__class__("system", system), *user(f"question {i}")) for i in range(6)]  # type: ignore[union-attr]
    first = engine.generate(prompts[:1], GREEDY)[0]
    assert first.cached_tokens == 0
    again = engine.generate(prompts[1:2], GREEDY)[0]
    assert again.cached_tokens > 0.8 * again.prompt_tokens
    cached = []
    for holding, other in (prompts[2:4], prompts[4:6]):
        stream = engine.stream(holding, LONG)  # so that the other place has to answer
        next(stream)
        cached.append(engine.generate([other], GREEDY)[0].cached_tokens)
        stream.close()
    assert cached[0] < 20
    assert cached[1] > 0.8 * again.prompt_tokens
    streamed = list(engine.stream(prompts[5], GREEDY))[-1].generation
    assert streamed.cached_tokens > 0.8 * streamed.prompt_tokens


def test_what_another_prompt_pushed_out_is_kept_where_there_are_no_adapters(sharp: str, opened: list[Engine]) -> None:
    prompts = [user(f"{word} " * 60) for word in ("refund", "parcel")]
    cached = {}
    for mib in (0, 64):
        engine = opened_as(opened, sharp, parallel=1, cache_mib=mib)
        for prompt in prompts:
            engine.generate([prompt], GREEDY)
        cached[mib] = engine.generate(prompts[:1], GREEDY)[0].cached_tokens
    assert cached[0] < 20 < 60 < cached[64]


def test_nothing_that_one_adapter_computed_is_read_by_another(sharp: str, opened: list[Engine]) -> None:
    names = [adapt(sharp, f"adapter-{i}", i).name for i in range(2)]
    prompts = [user(f"{word} " * 60) for word in ("refund", "parcel")]
    expected = {name: opened_as(opened, name, cache_mib=0).generate(prompts, GREEDY) for name in names}
    together = open_many(open_store(), names, "llamacpp", EXACT | {"parallel": 1, "cache_mib": 64})
    opened.extend(together.values())
    for _ in range(3):
        for place, prompt in enumerate(prompts):
            for name, engine in together.items():
                assert engine.generate([prompt], GREEDY)[0].token_ids == expected[name][place].token_ids


@pytest.mark.parametrize("options", [{"draft": "small"}, {"lookup": True, "draft_tokens": 4}])
def test_guessed_tokens_change_no_answer(
    options: dict[str, Any], sharp: str, opened: list[Engine], tmp_path: Path, tiny_decoder_path: Path
) -> None:
    pull(f"file:{decoder(tiny_decoder_path, tmp_path / 'small', num_hidden_layers=1)}", alias="small")
    prompts = [*QUESTIONS, user("refund the parcel, " * 12)]
    sampling = Sampling(max_new_tokens=40)
    plain = opened_as(opened, sharp).generate(prompts, sampling)
    guessed = opened_as(opened, sharp, **options).generate(prompts, sampling)
    assert [g.token_ids for g in guessed] == [g.token_ids for g in plain]


def test_a_draft_model_must_have_the_same_vocabulary(sharp: str, tiny_gpt2: str, home: Path) -> None:
    with pytest.raises((MismatchError, InputError)):
        open_engine(open_store(), sharp, "llamacpp", EXACT | {"draft": tiny_gpt2})


def test_how_many_at_once_follows_from_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 10e9

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    eight_b = {
        "general.architecture": "llama", "llama.block_count": 32, "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8, "llama.embedding_length": 4096,
    }  # fmt: skip
    assert slots(eight_b, 4096, "f16") == 3  # 128 KiB a token: 0.54 GB for each of them, 2 GB in all
    assert slots(eight_b, 4096, "q8_0") == 7
    assert slots(eight_b, 100_000, "f16") == 1
    assert slots(eight_b, 100, "f16") == 8
    mixed = eight_b | {"llama.attention.head_count_kv": [8] * 16 + [0] * 16, "llama.attention.key_length": 128}
    assert slots(mixed, 4096, "f16") == 7
