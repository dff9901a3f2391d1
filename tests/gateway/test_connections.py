"""Clients that connect and do nothing, that are slow, that send what is not HTTP."""

from __future__ import annotations

import json
import resource
import socket
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from luthier.gateway import connections
from luthier.gateway.connections import Connection, raise_file_limit

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n" % len(BODY)
)


def connect(server: Any) -> socket.socket:
    host, port = server.root.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def everything(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    try:
        while part := client.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:  # closed with something of ours unread
        pass
    return b"".join(parts)


def answers(server: Any) -> None:
    """The server answers."""
    said = server.client().chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
    assert said.choices[0].message.content


def test_five_thousand_idle_connections(start: Any, make_fake: Any) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = raise_file_limit()
    count = 5000 if hard == resource.RLIM_INFINITY or hard > 11_000 else (min(hard, room) - 300) // 2
    server = start({"m": make_fake("m")})
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(server)) for _ in range(count)]
        answers(server)
        idle[0].sendall(HEAD + b"Connection: close\r\n\r\n" + BODY)  # the oldest of them is still served
        assert everything(idle[0]).startswith(b"HTTP/1.1 200")
    answers(server)


def test_too_many_connections_cost_the_longest_idle_one(
    start: Any, make_fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "most", 3)
    monkeypatch.setattr(connections, "SPARE_FILES", 0)
    monkeypatch.setattr("luthier.gateway.serve.raise_file_limit", lambda: 3)
    server = start({"m": make_fake("m")})
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(server)) for _ in range(3)]
        idle[0].sendall(HEAD + b"\r\n" + BODY)  # it has been served, and so is not the longest idle one any more
        assert idle[0].recv(12) == b"HTTP/1.1 200"
        stack.enter_context(connect(server))
        assert everything(idle[1]) == b""
        idle[2].sendall(HEAD + b"Connection: close\r\n\r\n" + BODY)
        assert everything(idle[2]).startswith(b"HTTP/1.1 200")


def test_a_head_that_never_ends(start: Any, make_fake: Any) -> None:
    server = start({"m": make_fake("m")})
    with connect(server) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n")
        try:
            for _ in range(4000):
                client.sendall(b"X-Filler: " + b"x" * 1000 + b"\r\n")
        except OSError:
            pass
        said = everything(client)
    assert not said or b" 431 " in said.split(b"\r\n")[0]  # a reset connection may lose the words
    answers(server)


def test_a_slow_head_is_refused(start: Any, make_fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.05)
    server = start({"m": make_fake("m")})
    with connect(server) as silent, connect(server) as slow, connect(server) as second:
        slow.sendall(HEAD)
        second.sendall(HEAD + b"\r\n" + BODY)
        while b'"finish_reason"' not in second.recv(1 << 16):
            pass
        second.sendall(HEAD)  # the second request's head on a connection that was good before
        for client in (slow, second):
            said = everything(client)
            assert said.startswith(b"HTTP/1.1 408")
            assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "head_timeout"
        assert everything(silent) == b""
    answers(server)


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"hello\r\n\r\n", b"\0" * 100]
)
def test_what_is_not_http(start: Any, make_fake: Any, junk: bytes) -> None:
    server = start({"m": make_fake("m")})
    with connect(server) as client:
        client.sendall(junk)
        said = everything(client)
    assert said.startswith(b"HTTP/1.1 400")
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"
    answers(server)


def test_a_half_closed_connection_counts_as_gone(start: Any, scripted: Any) -> None:
    """A closed sending side is all that a server sees of a client that has left."""
    engine = scripted()
    server = start({"m": engine})
    with connect(server) as client:
        client.sendall(HEAD + b"\r\n" + BODY[:10])
        client.shutdown(socket.SHUT_WR)
        assert everything(client) == b""
    assert not engine.asked
    answers(server)


def test_pipelined_requests_are_answered_in_order(start: Any, make_fake: Any) -> None:
    server = start({"m": make_fake("m")})
    with connect(server) as client:
        get = b"GET /v1/models/%b HTTP/1.1\r\nHost: localhost\r\n%b\r\n"
        client.sendall(get % (b"m", b"") + get % (b"none", b"") + get % (b"m", b"Connection: close\r\n"))
        said = everything(client)
    assert [part[:3] for part in said.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200"]


def test_the_file_limit_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    assert raise_file_limit() == 4096 - connections.SPARE_FILES
    assert asked == [(4096, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100_000, 100_000))
    assert raise_file_limit() == Connection.most
    assert len(asked) == 1, "enough already"


def test_health_while_others_are_slow(start: Any, make_fake: Any) -> None:
    server = start({"m": make_fake("m")})
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(server)).sendall(HEAD + b"\r\n" + BODY[:-1])  # the last byte never comes
        assert httpx.get(f"{server.root}/health").json()["status"] == "ok"
        answers(server)
