from __future__ import annotations

from typing import Any

import httpx

from luthier import __version__
from luthier.core.errors import StoreError


def test_models(server: Any) -> None:
    client = server.client()
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {"fake", "desk"}
    assert listed["desk"].owned_by == "luthier"
    one = client.models.retrieve("desk")
    assert one.labels == ["billing", "refund", "delivery"]
    assert len(one.model_digest) == 64
    assert one.default_temperature == 0.0
    unknown = httpx.get(f"{server.base_url}/models/dosk")
    assert unknown.status_code == 404
    assert "'desk'" in unknown.json()["error"]["message"]


def test_health(server: Any) -> None:
    state = httpx.get(f"{server.root}/health").json()
    assert state["status"] == "ok"
    assert state["version"] == __version__
    assert set(state["models"]) == {"fake", "desk"}
    assert state["uptime_s"] > 0
    assert state["traces"]["dropped"] == 0


def test_traces(server: Any) -> None:
    answer = server.client().chat.completions.create(
        model="desk", messages=[{"role": "user", "content": "pay me back"}]
    )
    trace = httpx.get(f"{server.base_url}/traces/{answer.id}").json()
    assert (trace["object"], trace["id"], trace["answer"]) == ("trace", answer.id, answer.choices[0].message.content)
    assert trace["cost"] == (2 * answer.usage.prompt_tokens + 4 * answer.usage.completion_tokens) / 1e6
    missing = httpx.get(f"{server.base_url}/traces/trace_missing")
    assert missing.status_code == 404
    assert missing.json()["error"]["type"] == "not_found_error"


def test_paths_and_methods_that_do_not_exist(server: Any) -> None:
    missing = httpx.post(f"{server.base_url}/assistants", json={})
    assert missing.status_code == 404
    assert "/v1/chat/completions" in missing.json()["error"]["message"]
    assert httpx.get(f"{server.base_url}/chat/completions").status_code == 405
    assert httpx.get(f"{server.root}/docs").status_code == 404


def test_the_description_names_every_field(server: Any) -> None:
    described = httpx.get(f"{server.root}/openapi.json").json()
    body = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "messages", "temperature", "repetition_penalty"} <= set(body["properties"])
    from luthier.gateway.api.chat import ChatRequest

    assert set(body["properties"]) == set(ChatRequest.model_fields)


def test_a_store_that_refuses(start: Any, scripted: Any, monkeypatch: Any, caplog: Any) -> None:
    """Answers go on; /health says degraded and why; feedback says to come back; paths stay in the log."""
    from luthier.gateway import service as service_module

    full = True

    def write(store: Any, batch: Any) -> None:
        if full:
            raise StoreError("the disk is full: cannot write /data/private/luthier.db")
        record(store, batch)

    record = service_module.record_traces
    monkeypatch.setattr(service_module, "record_traces", write)
    server = start({"m": scripted()})
    hello = [{"role": "user", "content": "hello"}]
    answer = server.client().chat.completions.create(model="m", messages=hello)
    assert answer.choices[0].message.content == "one two three"
    said = httpx.post(f"{server.base_url}/feedback", json={"trace_id": answer.id, "rating": 1})
    assert said.status_code == 503
    assert said.headers["retry-after"]
    assert "private" not in said.text
    state = httpx.get(f"{server.root}/health").json()
    assert state["status"] == "degraded"
    assert "disk is full" in state["traces"]["error"]
    assert "/data/private" in caplog.text
    full = False
    for _ in range(5):
        said = httpx.post(f"{server.base_url}/feedback", json={"trace_id": answer.id, "rating": 1})
        if said.status_code == 200:
            break
    assert said.status_code == 200
    assert httpx.get(f"{server.root}/health").json()["status"] == "ok"
