"""What no client should send, over real HTTP: each is refused in words with its field, and the server goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from luthier.gateway.serve import running
from luthier.store.database import open_store

USER = {"role": "user", "content": "hello"}
JSON = {"content-type": "application/json"}
TREE = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from luthier.engines._target import EngineTarget
    from luthier.engines.fake import Config
    from luthier.engines.fake import open as open_fake

    with running(
        {"m": open_fake(EngineTarget("m"), Config())}, store=open_store(tmp_path_factory.mktemp("bad"))
    ) as url:
        yield url


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, headers=JSON, timeout=60) as made:
        yield made


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


@pytest.mark.parametrize(
    ("path", "content", "status", "param", "code"),
    [
        ("chat/completions", b"", 400, None, "invalid_json"),
        ("chat/completions", b"[" * 100_000, 400, None, "invalid_json"),
        ("chat/completions", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400, None, "invalid_json"),
        ("chat/completions", chat()[:-1] + b', "user": "\xff\xfe"}', 400, None, "invalid_json"),
        ("chat/completions", chat()[:-1] + b', "user": "\\ud83d"}', 400, None, "invalid_json"),
        ("chat/completions", chat()[:-1] + b', "temperature": NaN}', 400, None, "invalid_json"),
        ("chat/completions", chat()[:-1] + b', "temperature": 1e999}', 400, None, "invalid_json"),
        ("chat/completions", chat(model="x" * 100_000), 400, "model", "invalid_value"),
        ("chat/completions", chat(model=["m"]), 400, "model", "invalid_value"),
        ("chat/completions", chat(model="M"), 404, "model", "model_not_found"),
        ("chat/completions", chat(n=10**6), 400, "n", "invalid_value"),
        ("chat/completions", chat(n=10**30), 400, "n", "invalid_value"),
        ("chat/completions", chat(max_tokens=-1), 400, "max_tokens", "invalid_value"),
        ("chat/completions", chat(stop=["x"] * 10**5), 400, "stop", "invalid_value"),
        ("chat/completions", chat(logit_bias={str(n): 1 for n in range(10**5)}), 400, "logit_bias", "invalid_value"),
        ("chat/completions", chat(messages=[USER] * 10**5), 400, "messages", "invalid_value"),
        ("chat/completions", chat(messages=[USER | {"content": "x " * 10**5}]), 400, None, "context_length_exceeded"),
        ("chat/completions", chat(tools=[{"type": "function"}] * 10**4), 400, "tools", "invalid_value"),
        (
            "chat/completions",
            chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#"}}}]),
            400,
            "tools[0].function.parameters",
            "invalid_value",
        ),
        (
            "chat/completions",
            chat(
                tools=[{"type": "function", "function": {"name": "f"}}],
                tool_choice={"type": "function", "function": {"name": "g"}},
            ),
            400,
            "tool_choice",
            "invalid_value",
        ),
        (
            "chat/completions",
            chat(tools=[{"type": "function", "function": {"name": "f", "parameters": TREE}}], tool_choice="required"),
            400,
            None,
            None,
        ),
        (
            "chat/completions",
            chat(response_format={"type": "json_schema", "json_schema": {"name": "tree", "schema": TREE}}),
            400,
            None,
            None,
        ),
        ("chat/completions", chat(guided_regex="(" * 500), 400, None, None),
        ("chat/completions", chat(guided_grammar="root ::= root"), 400, None, None),
        ("chat/completions", chat(beams=4), 400, "beams", "unsupported_value"),
        ("chat/completions", chat(guided_choice=["a"] * 10**5), 400, "guided_choice", "invalid_value"),
        (
            "chat/completions",
            chat(
                messages=[
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
                ]
            ),
            400,
            "messages[0].content[0].image_url.url",
            "invalid_value",
        ),
        ("completions", json.dumps({"model": "m", "prompt": [1, 2]}).encode(), 400, "prompt", "invalid_value"),
        ("completions", json.dumps({"model": "m", "prompt": ["x"] * 10**5}).encode(), 400, "prompt", "invalid_value"),
        ("embeddings", json.dumps({"model": "m", "input": ["x"] * 10**5}).encode(), 400, "input", "invalid_value"),
        ("responses", json.dumps({"model": "m", "input": [{"type": "x"}] * 10**5}).encode(), 400, "input", "invalid_value"),
        ("rerank", json.dumps({"model": "m", "query": "x", "documents": ["x"] * 10**5}).encode(), 400, "documents", "invalid_value"),
        ("chat/completions", b'{"model": "m", "messages": "' + b"x" * (50 * 2**20) + b'"}', 413, None, "body_too_large"),
    ],
)  # fmt: skip
def test_it_is_refused_in_words(
    client: httpx.Client, path: str, content: bytes, status: int, param: str | None, code: str | None
) -> None:
    sent = [content]
    if path.startswith("chat") and content.endswith(b"}"):
        sent.append(content[:-1] + b', "stream": true}')
    for body in sent:
        answer = client.post(path, content=body)
        error = answer.json()["error"]
        assert answer.status_code == status, error
        assert param is None or error["param"] == param
        assert code is None or error["code"] == code
        assert error["message"]
        assert len(answer.content) < 4000


def test_of_a_name_that_occurs_twice_the_last_one_counts(client: httpx.Client) -> None:
    body = b'{"model": "nobody", "messages": [{"role": "user", "content": "hi"}], "model": "m"}'
    assert client.post("chat/completions", content=body).json()["model"] == "m"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_another_content_type(client: httpx.Client, kind: str) -> None:
    answer = client.post("chat/completions", content=chat(), headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "content_type")


def test_a_body_without_end(base_url: str) -> None:
    """Chunk after chunk: the refusal comes and the connection is closed, whether the client stops or not."""
    host, port = base_url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as sock:
        sock.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
        sent = 0
        try:
            while sent < 200:
                sock.sendall(chunk)
                sent += 1
        except OSError:  # closed while we were sending, as it should
            pass
        assert sent < 200
    assert httpx.get(f"{base_url}/models").status_code == 200


def test_the_server_is_well_after_all_of_it(base_url: str, client: httpx.Client) -> None:
    state = httpx.get(base_url.removesuffix("/v1") + "/health").json()
    assert state["status"] == "ok"
    assert state["requests"] == {"running": 0, "waiting": 0}
    assert client.post("chat/completions", content=chat()).status_code == 200
