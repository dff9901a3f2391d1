"""Clients that leave, that are slow, that are many; engines that fail."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from luthier.core.errors import EngineError, InputError, OfflineError
from luthier.gateway import answer
from luthier.gateway import service as service_module
from luthier.gateway.calls import Piece
from luthier.store.traces import list_traces

HELLO = [{"role": "user", "content": "hello"}]


def until(happened: Callable[[], bool], most_s: float = 20.0) -> None:
    """Wait for something that another thread does."""
    turn = threading.Event()
    for _ in range(round(most_s / 0.01)):
        if happened():
            return
        turn.wait(0.01)
    raise AssertionError("it did not happen in time")


@contextmanager
def connection(server: Any, *, stream: bool, window: int | None = None, **extra: Any) -> Iterator[socket.socket]:
    """A chat request over a plain socket, sent and not yet answered; ``window`` is the socket's receive buffer."""
    host, port = server.root.removeprefix("http://").split(":")
    body = json.dumps({"model": "m", "messages": HELLO, "stream": stream, **extra}).encode()
    with socket.socket() as client:
        if window is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        client.settimeout(30)
        client.connect((host, int(port)))
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        yield client


def rest_of(client: socket.socket) -> bytes:
    """Everything until the server closes."""
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


def health(server: Any) -> Any:
    return httpx.get(f"{server.root}/health").json()


def traces(server: Any) -> list[Any]:
    """All traces, once the server is idle and has written them."""
    until(lambda: health(server)["requests"] == {"running": 0, "waiting": 0})
    httpx.get(f"{server.base_url}/traces/none", timeout=60)  # an unknown one: everything is flushed first
    return list_traces(server.store)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_engine(start: Any, scripted: Any, stream: bool) -> None:
    steps = threading.Semaphore(3)
    engine = scripted(pieces=["x"] * 5000, before=lambda number: steps.acquire(timeout=20))
    server = start({"m": engine})
    with connection(server, stream=stream) as client:
        if stream:
            assert client.recv(12) == b"HTTP/1.1 200"
        until(lambda: engine.given >= 2)
    for _ in range(4000):  # the engine takes step after step until it is told that nobody listens
        steps.release()
        if engine.ended.wait(0.005):
            break
    assert engine.ended.is_set()
    assert engine.given < 5000
    (trace,) = traces(server)
    assert "closed its connection" in trace.error
    assert trace.answer.startswith("xx")
    assert server.client().models.list().data


def test_a_client_that_leaves_the_queue_is_never_computed(start: Any, scripted: Any) -> None:
    go = threading.Event()
    engine = scripted(before=lambda number: go.wait(20))
    server = start({"m": engine}, max_concurrent=1)
    with connection(server, stream=False) as first:
        until(lambda: health(server)["requests"]["running"] == 1)
        with connection(server, stream=True):
            until(lambda: health(server)["requests"]["waiting"] == 1)
        until(lambda: health(server)["requests"]["waiting"] == 0)
        go.set()
        assert rest_of(first).startswith(b"HTTP/1.1 200")
    assert len(engine.asked) == 1
    assert sorted(bool(trace.error) for trace in traces(server)) == [False, True]


def test_a_full_queue_is_429_and_the_client_comes_back(start: Any, scripted: Any) -> None:
    go = threading.Event()
    engine = scripted(before=lambda number: go.wait(20))
    server = start({"m": engine}, max_concurrent=1, max_queue=1)
    with connection(server, stream=False) as first, connection(server, stream=False) as second:
        until(lambda: health(server)["requests"] == {"running": 1, "waiting": 1})
        with pytest.raises(openai.RateLimitError) as full:
            server.client().chat.completions.create(model="m", messages=HELLO)
        assert int(full.value.response.headers["retry-after"]) >= 1
        assert full.value.body["code"] == "queue_full"
        go.set()
        assert rest_of(first).startswith(b"HTTP/1.1 200")
        assert rest_of(second).startswith(b"HTTP/1.1 200")
    assert server.client().chat.completions.create(model="m", messages=HELLO).choices


def test_a_slow_reader_holds_nobody_up_and_gets_everything(start: Any, scripted: Any) -> None:
    """16 MB that nobody reads: the engine finishes, others are answered, and then the reader reads it all."""
    piece = "abcdefgh" * 8192
    engine = scripted(pieces=[piece] * 256)
    quick = scripted()
    server = start({"m": engine, "quick": quick}, max_concurrent=1)
    with connection(server, stream=True, window=8192) as client:
        assert client.recv(12) == b"HTTP/1.1 200"
        assert engine.ended.wait(20)
        until(lambda: health(server)["requests"]["running"] == 0)
        assert server.client().chat.completions.create(model="quick", messages=HELLO).choices[0].message.content
        body = rest_of(client)
    assert body.count(b"abcdefgh") == 8192 * 256
    assert body.rstrip().endswith(b"data: [DONE]\n\n\r\n0") or b"data: [DONE]" in body[-64:]


def test_a_reader_that_never_reads_is_cut(
    start: Any, scripted: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(answer, "SEND_TIMEOUT_S", 0.2)
    server = start({"m": scripted(pieces=["abcdefgh" * 8192] * 400)})
    with connection(server, stream=True, window=8192) as client:
        assert client.recv(12) == b"HTTP/1.1 200"
        until(lambda: "was cut" in caplog.text)
        assert b"[DONE]" not in rest_of(client)
    assert server.client().models.list().data


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status"),
    [(InputError("the prompt has 900 tokens; m takes at most 512"), 400), (EngineError("out of memory"), 502),
     (OfflineError("the remote does not answer"), 503), (ZeroDivisionError("inner detail"), 502)],
)  # fmt: skip
def test_an_engine_that_refuses_at_once(start: Any, scripted: Any, error: Exception, status: int, stream: bool) -> None:
    def fail(number: int) -> None:
        raise error

    server = start({"m": scripted(before=fail)})
    with pytest.raises(openai.APIStatusError) as raised:
        server.client().chat.completions.create(model="m", messages=HELLO, stream=stream)
    assert raised.value.status_code == status
    assert "inner detail" not in str(raised.value)
    (trace,) = traces(server)
    assert trace.id == raised.value.response.headers["x-luthier-trace-id"]
    assert trace.error
    assert trace.latency_s > 0


def test_an_engine_that_fails_in_the_middle_of_a_stream(start: Any, scripted: Any) -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise EngineError("the remote hung up")

    server = start({"m": scripted(before=fail)})
    got = []
    with pytest.raises(openai.APIError, match="hung up"):
        for chunk in server.client().chat.completions.create(model="m", messages=HELLO, stream=True):
            got.append(chunk.choices[0].delta.content or "")
    assert "".join(got) == "one two"
    (trace,) = traces(server)
    assert (trace.answer, trace.error) == ("one two", "the remote hung up")


@pytest.mark.parametrize("stream", [True, False])
def test_a_layer_that_fails_as_none_should(
    start: Any, scripted: Any, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """The client hears of it, also in the middle of a stream, but of nothing inside; the next request is answered."""
    broken = True

    async def answers(service: Any, question: Any) -> AsyncIterator[Any]:
        if broken:
            yield Piece(0, "one")
            raise ZeroDivisionError("inner detail")
        async for piece in real(service, question):
            yield piece

    real = service_module.answers
    monkeypatch.setattr(service_module, "answers", answers)
    server = start({"m": scripted()})
    with pytest.raises(openai.APIError) as raised:
        list(server.client().chat.completions.create(model="m", messages=HELLO, stream=stream))
    assert "its log says how" in str(raised.value)
    assert "inner detail" not in str(raised.value)
    (trace,) = traces(server)
    assert "its log says how" in trace.error
    assert trace.details["error"][0]["kind"] == "internal_error"
    broken = False
    assert server.client().chat.completions.create(model="m", messages=HELLO).choices


def test_a_trace_says_exactly_what_answered(start: Any, scripted: Any) -> None:
    server = start({"m": scripted()}, price=["1000,2000"])
    made = server.client().chat.completions.create(model="m", messages=HELLO)
    (trace,) = traces(server)
    assert (trace.id, trace.model, trace.operation, trace.answer) == (made.id, "m", "chat", "one two three")
    assert (trace.model_digest, trace.base_digest, trace.template_digest) == ("m" * 64, "b" * 64, "t" * 64)
    assert (trace.prompt_tokens, trace.completion_tokens, trace.finish_reason) == (2, 3, "stop")
    assert trace.cost == pytest.approx(2 * 1e-3 + 3 * 2e-3)
    assert 0 <= trace.first_token_s <= trace.latency_s
    assert server.client().chat.completions.with_raw_response.create(
        model="m", messages=HELLO
    ).headers["x-request-id"].startswith("trace_")  # fmt: skip


def test_forty_clients_of_which_five_are_slow(start: Any, scripted: Any, make_fake: Any) -> None:
    """Streams and whole answers mixed, fewer turns than clients; everybody gets their own answer in full."""
    big = scripted(pieces=["abcdefgh" * 8192] * 64)
    server = start({"fake": make_fake("fake", latency_s=0.005), "m": big}, max_concurrent=4, max_queue=64)
    expected = make_fake("fake")
    wrong: list[str] = []
    read = threading.Event()

    def quick(number: int) -> None:
        from luthier.core.engine import Sampling
        from luthier.core.message import user

        with server.client() as client:
            for turn in range(3):
                text = f"question {number} of turn {turn}"
                asked: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": text}]}
                asked["temperature"] = 0
                if (number + turn) % 2:
                    stream = client.chat.completions.create(**asked, stream=True)
                    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
                else:
                    said = client.chat.completions.create(**asked).choices[0].message.content or ""
                if said != expected.generate([user(text)], Sampling())[0].text:
                    wrong.append(text)

    def slow(number: int) -> None:
        with connection(server, stream=True, window=8192) as client:
            client.recv(12)
            read.wait(30)
            if rest_of(client).count(b"abcdefgh") != 64 * 8192:
                wrong.append(f"slow reader {number}")

    slows = [threading.Thread(target=slow, args=(number,)) for number in range(5)]
    quicks = [threading.Thread(target=quick, args=(number,)) for number in range(35)]
    for thread in [*slows, *quicks]:
        thread.start()
    for thread in quicks:
        thread.join(60)
        assert not thread.is_alive()
    read.set()  # only now do the slow ones read on
    for thread in slows:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []
    until(lambda: health(server)["requests"] == {"running": 0, "waiting": 0})
    httpx.get(f"{server.base_url}/traces/none", timeout=60)
    assert len(list_traces(server.store, limit=1000)) == 5 + 35 * 3
