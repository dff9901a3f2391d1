from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.gateway.test_adapters import store_adapter

from luthier.gateway.serve import running
from luthier.store import models as stored
from luthier.store.audit import list_audit
from luthier.store.database import open_store
from luthier.store.traces import list_traces

HELLO = [{"role": "user", "content": "hello"}]


def chat(server: Any, model: str, **more: Any) -> httpx.Response:
    return httpx.post(
        f"{server.base_url}/chat/completions", json={"model": model, "messages": HELLO, **more}, timeout=60
    )


def names(server: Any) -> list[str]:
    return [each["id"] for each in httpx.get(f"{server.base_url}/models").json()["data"]]


def test_load_and_unload(start: Any, make_fake: Any) -> None:
    server = start({"fake": make_fake("fake")})
    assert chat(server, "extra").status_code == 404
    made = httpx.post(f"{server.base_url}/models", json={"model": "fake:yes,no", "name": "extra"})
    assert (made.status_code, made.json()["id"], made.json()["labels"]) == (200, "extra", ["yes", "no"])
    assert names(server) == ["fake", "extra"]
    assert chat(server, "extra").json()["choices"][0]["message"]["content"] in ("yes", "no")
    again = httpx.post(f"{server.base_url}/models", json={"model": "fake:yes,no", "name": "extra"})
    assert again.status_code == 409
    swapped = httpx.post(f"{server.base_url}/models", json={"model": "fake:left,right", "name": "extra", "swap": True})
    assert swapped.json()["labels"] == ["left", "right"]
    gone = httpx.delete(f"{server.base_url}/models/extra")
    assert gone.json() == {"id": "extra", "object": "model", "deleted": True}
    assert chat(server, "extra").status_code == 404
    assert httpx.delete(f"{server.base_url}/models/extra").status_code == 404
    assert [row.action for row in list_audit(server.store, action="model.*")] == [
        "model.unload",
        "model.load",
        "model.load",
    ]


def test_vllms_names(start: Any, make_fake: Any) -> None:
    server = start({"fake": make_fake("fake")})
    made = httpx.post(f"{server.base_url}/load_lora_adapter", json={"lora_name": "extra", "lora_path": "fake:a,b"})
    assert (made.status_code, made.text) == (200, "Success: LoRA adapter 'extra' added successfully.")
    assert names(server) == ["fake", "extra"]
    gone = httpx.post(f"{server.base_url}/unload_lora_adapter", json={"lora_name": "extra"})
    assert (gone.status_code, names(server)) == (200, ["fake"])


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("models", {"model": "no-such-model"}, 404, "no-such-model"),
        ("models", {"model": "openai:x@http://evil.example/v1"}, 400, "configuration file"),
        (
            "models",
            {"model": "x", "engine": "openai", "options": {"api_key_env": "AWS_SECRET_ACCESS_KEY"}},
            400,
            "configuration file",
        ),
        ("models", {"model": "fake", "options": {"widht": 3}, "name": "x"}, 400, "widht"),
        ("models", {"model": "fake", "name": "../x"}, 400, "name must be"),
        ("models", {"model": "fake", "name": "r"}, 409, "route"),
        ("models", {"modle": "fake"}, 400, "modle"),
        ("load_lora_adapter", {"lora_name": "x", "lora_path": "/etc/passwd"}, 400, "not a path"),
        ("load_lora_adapter", {"lora_name": "x", "lora_path": "..\\x"}, 400, "not a path"),
    ],
)
def test_what_is_refused(start: Any, make_fake: Any, path: str, body: Any, status: int, words: str) -> None:
    route = {"r": {"strategy": "fallback", "targets": ["fake"]}}
    server = start({"fake": make_fake("fake")}, config={"routes": route})
    answer = httpx.post(f"{server.base_url}/{path}", json=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert names(server) == ["fake", "r"]


def test_a_target_of_a_route_stays(start: Any, make_fake: Any) -> None:
    server = start({"fake": make_fake("fake")}, config={"routes": {"r": {"strategy": "fallback", "targets": ["fake"]}}})
    refused = httpx.delete(f"{server.base_url}/models/fake")
    assert refused.status_code == 409
    assert "'r'" in refused.json()["error"]["message"]
    answer = chat(server, "r").json()
    assert answer["choices"]
    (trace,) = list_traces(server.store) or [None]
    assert (trace.route, trace.model) == ("r", "fake")


def test_without_the_scope_admin(start: Any, make_fake: Any, home: Path) -> None:
    from luthier.store.keys import create_key

    store = open_store()
    _, plain = create_key(store, "acme", models=["fake"])
    _, admin = create_key(store, "ops", scopes=["inference", "admin"])
    route = {"hidden": {"strategy": "fallback", "targets": ["fake", "other"]}}
    server = start(
        {"fake": make_fake("fake"), "other": make_fake("other")}, store=store, keys=True, config={"routes": route}
    )
    mine, theirs = ({"authorization": f"Bearer {key}"} for key in (plain, admin))
    for method, path, body in (
        ("POST", "models", {"model": "fake", "name": "x"}), ("DELETE", "models/other", None), ("GET", "routes", None),
        ("POST", "load_lora_adapter", {"lora_name": "x"}), ("POST", "unload_lora_adapter", {"lora_name": "other"}),
        ("POST", "routes/hidden/reset", {}),
    ):  # fmt: skip
        answer = httpx.request(method, f"{server.base_url}/{path}", json=body, headers=mine)
        assert answer.status_code == 403, path
    listed = httpx.get(f"{server.base_url}/models", headers=mine).json()["data"]
    assert [each["id"] for each in listed] == ["fake"]  # neither others' models nor routes
    for unseen in ("other", "hidden"):
        assert httpx.get(f"{server.base_url}/models/{unseen}", headers=mine).status_code == 404
        refused = httpx.post(
            f"{server.base_url}/chat/completions", json={"model": unseen, "messages": HELLO}, headers=mine
        )
        assert refused.status_code == 404
        assert "other" not in refused.json()["error"]["message"].replace(repr(unseen), "")
    assert "targets" not in httpx.get(f"{server.root}/health", headers=mine).json()
    assert set(httpx.get(f"{server.root}/health", headers=theirs).json()["targets"]) == {"fake", "other"}
    assert httpx.get(f"{server.root}/health/ready").json() == {"status": "ready"}


def test_not_ready_while_no_model_can_be_asked(start: Any, make_fake: Any) -> None:
    config = {"models": {"fake": {"retries": 0, "breaker": {"least": 1, "open_s": 600}}}}
    server = start({"fake": make_fake("fake", fail={"": "down"})}, config=config)
    assert chat(server, "fake").status_code == 502
    assert httpx.get(f"{server.root}/health/ready").status_code == 503
    refused = chat(server, "fake")
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    (replica,) = httpx.get(f"{server.root}/health").json()["targets"]["fake"]["replicas"]
    assert replica["state"] in ("open", "unwell")


def test_fifty_models_swapped_under_load_drop_no_request(start: Any, make_fake: Any) -> None:
    """Clients ask 50 models all the time while each of them is swapped for another twice: every request has an answer, of the old or the new."""
    before = {f"m{number}": make_fake(f"m{number}", labels=(f"{number}-0",)) for number in range(50)}
    server = start(before, max_concurrent=16, max_queue=512)
    stop, draw = threading.Event(), random.Random(0)

    def ask(seed: int) -> list[tuple[str, int, str]]:
        mine, out = random.Random(seed), []
        with httpx.Client(base_url=server.base_url, timeout=60) as client:
            while not stop.is_set():
                name = f"m{mine.randrange(50)}"
                answer = client.post("/chat/completions", json={"model": name, "messages": HELLO, "temperature": 0})
                text = answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else answer.text
                out.append((name, answer.status_code, text))
        return out

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(ask, seed) for seed in range(6)]
        for generation in (1, 2):
            for number in draw.sample(range(50), 50):
                body = {"model": f"fake:{number}-{generation}", "name": f"m{number}", "swap": True}
                assert httpx.post(f"{server.base_url}/models", json=body, timeout=60).status_code == 200
        stop.set()
        answers = [each for client in clients for each in client.result()]
    assert len(answers) > 100
    assert {status for _, status, _ in answers} == {200}
    assert all(text.split("-")[0] == name[1:] for name, _, text in answers)  # nobody had another model's answer
    for number in (0, 25, 49):
        assert chat(server, f"m{number}", temperature=0).json()["choices"][0]["message"]["content"] == f"{number}-2"


def test_adapters_swapped_and_deleted_under_load(tiny_decoder: str) -> None:
    """Torch adapters of one base: while others come, go and are swapped, each answer is its adapter's own, and deleting one from the store
    leaves it serving."""
    kept = ["a", "b", "c"]
    for seed, name in enumerate([*kept, "d", "e"]):
        store_adapter(tiny_decoder, name, seed)
    options = {"dtype": "fp32"}
    with running([*kept, tiny_decoder], options=options, max_queue=512) as base_url:

        def ask(name: str) -> tuple[int, str]:
            body = {"model": name, "messages": HELLO, "temperature": 0, "max_tokens": 6}
            answer = httpx.post(f"{base_url}/chat/completions", json=body, timeout=120)
            return answer.status_code, answer.json()["choices"][0]["message"][
                "content"
            ] if answer.status_code == 200 else answer.text

        expected = {name: ask(name) for name in kept}
        assert {status for status, _ in expected.values()} == {200}
        stop = threading.Event()

        def client(seed: int) -> list[tuple[str, tuple[int, str]]]:
            mine, out = random.Random(seed), []
            while not stop.is_set():
                name = mine.choice(kept)
                out.append((name, ask(name)))
            return out

        with ThreadPoolExecutor(3) as pool:
            clients = [pool.submit(client, seed) for seed in range(3)]
            for name in ("d", "e", "d"):
                loaded = httpx.post(f"{base_url}/models", json={"model": name, "options": options}, timeout=120)
                assert loaded.status_code == 200, loaded.text
                assert ask(name)[0] == 200
                swapped = httpx.post(
                    f"{base_url}/models", json={"model": "a", "options": options, "swap": True}, timeout=120
                )
                assert swapped.status_code == 200, swapped.text
                assert httpx.delete(f"{base_url}/models/{name}").status_code == 200
                assert ask(name)[0] == 404
            stored.remove(open_store(), "b")  # its weights are in memory
            answers = [ask("b") for _ in range(3)]
            stop.set()
            answers += [said for each in clients for name, said in each.result() if said != expected[name]]
        assert answers == [expected["b"]] * 3
        assert httpx.delete(f"{base_url}/models/b").status_code == 200
        again = httpx.post(f"{base_url}/models", json={"model": "b"})
        assert again.status_code == 404  # now it is gone for good
