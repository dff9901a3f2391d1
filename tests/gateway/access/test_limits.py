from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from luthier.gateway.access import limits
from luthier.gateway.access.keys import Keys
from luthier.gateway.access.limits import BODY_LIMIT, IMAGES_LIMIT, Door

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(("path", "limit"), [("rerank", BODY_LIMIT), ("chat/completions", IMAGES_LIMIT)])
def test_a_body_over_the_limit_is_413(server: Any, path: str, limit: int) -> None:
    url = f"{server.base_url}/{path}"
    pieces = limit // 2**20 + 2
    for content in (b"x" * (limit + 1), (b"x" * 2**20 for _ in range(pieces))):
        answer = httpx.post(url, content=content, headers=JSON)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"
    filler = b'{"model": "fake", "messages": [{"role": "user", "content": "'
    content = filler + b"x" * (limit - len(filler) - 4) + b'"}]}'
    assert len(content) == limit
    assert httpx.post(url, content=content, headers=JSON).status_code == (200 if path.startswith("chat") else 400)


def door(app: Any, **settings: Any) -> Door:
    return Door(app, keys=Keys(), host="127.0.0.1", **settings)


def ask(
    through: Door, messages: Iterator[dict[str, Any]], path: str = "/v1/rerank", **headers: str
) -> tuple[int, dict[str, Any]]:
    """The status and body of one request whose body comes as ``messages``."""
    given = {"host": "localhost", "content-type": "application/json", **headers}
    scope = {
        "type": "http", "method": "POST", "path": path,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(through(scope, receive, send))
    return (sent[0]["status"], json.loads(sent[1]["body"])) if sent else (0, {})


def chunks(size: int, count: int, *, end: bool = True) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"type": "http.request", "body": b"x" * size, "more_body": not end or number < count - 1}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps({"bytes": len(message["body"])}).encode()})


def test_a_body_without_end_is_refused_and_costs_little() -> None:
    through = door(echo)
    most = 0

    def watched() -> Iterator[dict[str, Any]]:
        nonlocal most
        for message in chunks(2**20, 10_000, end=False):
            most = max(most, through.held)
            yield message

    status, body = ask(through, watched())
    assert (status, body["error"]["code"]) == (413, "body_too_large")
    assert most <= BODY_LIMIT
    assert through.held == 0


def test_bodies_are_counted_together_until_their_requests_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many clients that send large bodies slowly do not use up the memory: the ones that come too late are told so."""
    monkeypatch.setattr(limits, "HELD_LIMIT", 3 * 2**20)
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(through.held)
        await echo(scope, receive, send)

    through = door(app)
    assert ask(through, chunks(2**20, 2)) == (200, {"bytes": 2 * 2**20})
    assert seen == [2 * 2**20]
    assert through.held == 0
    through.held = 2 * 2**20  # what others send at the same time
    status, body = ask(through, chunks(2**20, 2))
    assert (status, body["error"]["code"]) == (503, "busy")
    assert through.held == 2 * 2**20


def test_a_client_that_leaves_while_it_sends_leaves_nothing_behind() -> None:
    through = door(echo)
    assert ask(through, chunks(2**20, 3, end=False)) == (0, {})
    assert through.held == 0


def test_packed_bodies_are_refused() -> None:
    """A few bytes could unpack to gigabytes."""
    status, body = ask(door(echo), chunks(10, 1), content_encoding="gzip")
    assert (status, body["error"]["code"]) == (415, "content_encoding")
    assert ask(door(echo), chunks(10, 1), content_encoding="identity")[0] == 200


def test_a_body_that_does_not_come_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_TIMEOUT_S", 0.05)
    through = door(echo)
    sent: list[Any] = []

    async def scenario() -> None:
        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        await through({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive, send)

    asyncio.run(scenario())
    assert sent[0]["status"] == 408


def test_only_json_bodies_are_read(server: Any) -> None:
    url = f"{server.base_url}/feedback"
    for kind in ("text/plain", "application/x-www-form-urlencoded"):  # what a browser sends without asking first
        answer = httpx.post(url, content=b'{"trace_id": "x", "rating": 1}', headers={"content-type": kind})
        assert answer.status_code == 415
    assert httpx.post(url, content=b"{}").status_code == 415
    assert "access-control-allow-origin" not in httpx.options(url, headers={"origin": "http://a.example"}).headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "10.0.0.1"])
def test_a_host_name_of_elsewhere_is_refused(server: Any, host: str) -> None:
    answer = httpx.get(f"{server.base_url}/models", headers={"host": host})
    assert answer.status_code in (400, 403)  # 400: the HTTP parser itself refuses an empty one


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:99", "[::1]:8000"])
def test_names_of_this_machine_pass(server: Any, host: str) -> None:
    assert httpx.get(f"{server.base_url}/models", headers={"host": host}).status_code == 200


def test_keys(start: Any, make_fake: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from openai import AuthenticationError

    monkeypatch.setenv("GATEWAY_KEYS", "first-secret-key,second-secret-key")
    server = start({"fake": make_fake("fake")}, api_key_env="GATEWAY_KEYS")
    message = [{"role": "user", "content": "hello"}]
    with caplog.at_level("DEBUG"):
        for key in ("first-secret-key", "second-secret-key"):
            assert server.client(api_key=key).chat.completions.create(model="fake", messages=message).id
        with pytest.raises(AuthenticationError) as raised:
            server.client(api_key="third-secret-key").models.list()
    assert raised.value.body["code"] == "invalid_api_key"
    assert "third-secret" not in str(raised.value)
    refused = httpx.get(f"{server.base_url}/models")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{server.root}/health").json() == {"status": "ok"}
    full = httpx.get(f"{server.root}/health", headers={"authorization": "Bearer first-secret-key"}).json()
    assert full["models"] == ["fake"]
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith(("luthier", "uvicorn")))
    assert "secret" not in ours
