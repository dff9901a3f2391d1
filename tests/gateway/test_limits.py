from __future__ import annotations

from typing import Any

import httpx
import pytest

from luthier.gateway.limits import BODY_LIMIT

JSON = {"content-type": "application/json"}


def test_a_body_over_the_limit_is_413(server: Any) -> None:
    url = f"{server.base_url}/chat/completions"
    for content in (b"x" * (BODY_LIMIT + 1), (b"x" * 2**20 for _ in range(6))):
        answer = httpx.post(url, content=content, headers=JSON)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"
    filler = b'{"model": "fake", "messages": [{"role": "user", "content": "'
    content = filler + b"x" * (BODY_LIMIT - len(filler) - 4) + b'"}]}'
    assert len(content) == BODY_LIMIT
    assert httpx.post(url, content=content, headers=JSON).status_code == 200


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
