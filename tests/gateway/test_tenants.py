"""Two tenants on one server: each with a key that works, trying to get at what is the other's."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIStatusError, AuthenticationError, NotFoundError, PermissionDeniedError, RateLimitError

from luthier.store.audit import list_audit, verify
from luthier.store.database import open_store
from luthier.store.feedback import list_feedback
from luthier.store.keys import create_key, limit_key, limit_tenant, revoke_key
from luthier.store.traces import list_traces
from luthier.store.usage import list_usage

HELLO: Any = [{"role": "user", "content": "hello"}]
EVERYTHING = ("inference", "feedback", "traces", "batch")


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "tenants-home")


@pytest.fixture
def shop(store, start, make_fake):
    """A server, and a function that makes a key and gives a client that has it."""
    engines = {name: make_fake(name) for name in ("acme-tickets", "other-tickets", "shared")}
    made = start(engines, store=store, keys=True, price=["1,2"])

    class Shop:
        server = made
        base_url = made.base_url

        def key(self, tenant="acme", **settings):
            return create_key(store, tenant, **{"scopes": EVERYTHING, **settings})

        def client(self, tenant="acme", **settings):
            record, secret = self.key(tenant, **settings)
            self.until(secret, 200)
            return made.client(api_key=secret), record

        def until(self, secret, status):
            """Wait until the server knows of a change: about a second."""
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                got = httpx.get(f"{made.base_url}/models", headers={"Authorization": f"Bearer {secret}"})
                if got.status_code == status:
                    return got
            raise AssertionError(got.text)

    return Shop()


def said_of(call, *arguments, **options):
    """What a 404 says."""
    with pytest.raises(NotFoundError) as raised:
        call(*arguments, **options)
    return raised.value.body["message"]


def ask(client, model="shared", **more):
    return client.chat.completions.create(model=model, messages=HELLO, **more)


def test_without_a_key_and_with_a_wrong_one(shop):
    for headers in ({}, {"Authorization": "Bearer lth_wrong"}):
        refused = httpx.get(f"{shop.base_url}/models", headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{shop.server.root}/health").json() == {"status": "ok"}


def test_a_revoked_key_dies_within_about_a_second(shop, store):
    client, record = shop.client()
    ask(client)
    began = time.monotonic()
    revoke_key(store, record.id)
    gone = shop.until(client.api_key, 401)
    assert gone.json()["error"]["code"] == "revoked_api_key"
    assert time.monotonic() - began < 10  # a second, and whatever else this machine does
    with pytest.raises(AuthenticationError):
        ask(client)


def test_scopes(shop):
    client, _ = shop.client(scopes=["traces"])
    with pytest.raises(PermissionDeniedError, match="inference"):
        ask(client)
    for path, body in (
        ("/v1/feedback", {"trace_id": "x", "rating": 1}),
        ("/v1/embeddings", {"model": "shared", "input": "x"}),
    ):
        with pytest.raises(PermissionDeniedError):
            client.post(f"{shop.server.root}{path}", body=body, cast_to=object)
    asking, _ = shop.client(scopes=["inference"])
    trace = ask(asking).id
    with pytest.raises(PermissionDeniedError, match="traces"):
        asking.get(f"/traces/{trace}", cast_to=object)
    with pytest.raises(PermissionDeniedError, match="admin"):
        asking.get("/keys", cast_to=object)


def test_models_that_are_not_for_this_key_are_not_there(shop):
    client, _ = shop.client(models=["acme-*", "shared"])
    assert {model.id for model in client.models.list()} == {"acme-tickets", "shared"}
    ask(client, "acme-tickets")
    for attempt in (
        lambda: client.models.retrieve("other-tickets"),
        lambda: ask(client, "other-tickets"),
        lambda: client.completions.create(model="other-tickets", prompt="x"),
        lambda: client.embeddings.create(model="other-tickets", input="x"),
    ):
        said = said_of(attempt)
        unknown = said_of(client.models.retrieve, "no-such-thing")
        assert said.split(". ")[0].replace("other-tickets", "no-such-thing") == unknown.split(". ")[0]
        served = said.replace("'other-tickets' is not served", "")
        assert "other-tickets" not in served and "acme-tickets" in served


def test_another_tenants_trace_is_not_there(shop, store):
    mine, record = shop.client("acme")
    theirs, _ = shop.client("other")
    trace = ask(mine).id
    assert mine.get(f"/traces/{trace}", cast_to=object)["key_id"] == record.id
    said = said_of(theirs.get, f"/traces/{trace}", cast_to=object)
    unknown = said_of(theirs.get, "/traces/trace_none", cast_to=object)
    assert said.replace(trace, "trace_none") == unknown
    with pytest.raises(NotFoundError):
        theirs.post("/feedback", body={"trace_id": trace, "rating": -1}, cast_to=object)
    assert not list_feedback(store)
    mine.post("/feedback", body={"trace_id": trace, "rating": 1}, cast_to=object)
    assert [said.rating for _, said in list_feedback(store)] == [1]


def test_a_key_does_not_reach_traces_logs_or_the_disk(shop, store, caplog):
    client, record = shop.client()
    ask(client)
    with pytest.raises(APIStatusError) as raised:
        ask(client, "nothing")
    client.get(f"/traces/{ask(client).id}", cast_to=object)
    assert client.api_key not in caplog.text + raised.value.response.text + str(list_traces(store)) + str(
        list_audit(store)
    )
    for path in Path(store.home.root).rglob("*"):
        assert not path.is_file() or client.api_key[10:].encode() not in path.read_bytes()
    assert list_traces(store)[0].key_id == record.id


def test_a_rate_and_what_the_openai_client_sees_of_it(shop, store):
    client, _ = shop.client(limits={"requests_per_minute": 2, "tokens_per_minute": 10_000})
    first = client.chat.completions.with_raw_response.create(model="shared", messages=HELLO)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert int(first.headers["x-ratelimit-remaining-tokens"]) < 10_000
    with client.chat.completions.with_streaming_response.create(model="shared", messages=HELLO, stream=True) as stream:
        assert stream.headers["x-ratelimit-remaining-requests"] == "0"
        assert b"[DONE]" in stream.read()
    with pytest.raises(RateLimitError) as raised:
        ask(client)
    assert raised.value.code == "rate_limit_exceeded"
    assert 0 < int(raised.value.response.headers["retry-after"]) <= 30
    assert raised.value.response.headers["x-ratelimit-limit-requests"] == "2"


def test_a_budget_is_one_for_all_keys_of_a_tenant(shop, store):
    first, record = shop.client("acme")
    second, _ = shop.client("acme")
    other, _ = shop.client("other")
    answer = ask(first, max_tokens=50)
    spent = answer.usage.total_tokens
    limit_tenant(store, "acme", {"tokens_per_day": spent + 10})
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            ask(second, max_tokens=50)
        except RateLimitError as refused:
            assert refused.code == "insufficient_quota"
            break
    else:
        raise AssertionError("the limit never held")
    ask(other, max_tokens=50)
    limit_key(store, record.id, {"cost_per_day": 1.0})
    assert {row["tenant"] for row in list_usage(store)} <= {"acme", "other"}


def test_a_hundred_requests_at_once_and_a_limit_of_ten(shop, store):
    client, _ = shop.client(limits={"requests_per_minute": 10})

    def once(_: int) -> int:
        return client.post(
            "/chat/completions", body={"model": "shared", "messages": HELLO}, cast_to=httpx.Response
        ).status_code

    def attempt(number: int) -> int:
        try:
            return once(number)
        except RateLimitError:
            return 429

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(attempt, range(100)))
    assert answers.count(200) in (10, 11)  # one more may flow in while they come
    assert answers.count(429) == 100 - answers.count(200)


def test_usage_and_the_last_use_are_written_when_the_server_ends(store, make_fake, monkeypatch):
    from luthier.gateway.serve import running

    record, secret = create_key(store, "acme")
    with running({"m": make_fake("m")}, store=store, keys=True, price=["1,2"]) as base_url:
        headers = {"Authorization": f"Bearer {secret}"}
        usage = httpx.post(
            f"{base_url}/chat/completions", json={"model": "m", "messages": HELLO}, headers=headers
        ).json()["usage"]
    (row,) = list_usage(store)
    assert (row["key_id"], row["model"], row["requests"]) == (record.id, "m", 1)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert row["cost"] == pytest.approx((usage["prompt_tokens"] + 2 * usage["completion_tokens"]) / 1e6)
    from luthier.store.keys import find_key

    assert find_key(store, record.id).last_used_at is not None


def test_a_client_that_leaves_gives_its_place_back(store, start, scripted):
    going = threading.Event()
    slow = scripted(before=lambda number: going.wait(20) if number else None)
    _, secret = create_key(store, "acme", limits={"concurrent_requests": 1})
    server = start({"slow": slow}, store=store, keys=True)
    client = server.client(api_key=secret)
    stream = client.chat.completions.create(model="slow", messages=HELLO, stream=True)
    next(iter(stream))
    with pytest.raises(RateLimitError) as raised:
        ask(client, "slow")
    assert raised.value.code == "concurrent_limit_exceeded"
    stream.close()
    going.set()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            ask(client, "slow")
            return
        except RateLimitError:
            continue
    raise AssertionError("the place was never given back")


def test_keys_over_http(shop, store):
    admin, record = shop.client("operators", scopes=["admin"])
    made = admin.post(
        "/keys", body={"tenant": "acme", "name": "ci", "limits": {"requests_per_minute": 5}}, cast_to=object
    )
    fresh = shop.server.client(api_key=made["key"])
    ask(fresh)  # at once: this server need not look
    listed = admin.get("/keys", options={"params": {"tenant": "acme"}}, cast_to=object)["data"]
    assert [key["id"] for key in listed] == [made["id"]] and made["key"] not in str(listed)
    rotated = admin.post(f"/keys/{made['id']}/rotate", body={"grace": "1h"}, cast_to=object)
    ask(fresh), ask(shop.server.client(api_key=rotated["key"]))
    changed = admin.post(f"/keys/{made['id']}/limits", body={"limits": {"requests_per_minute": 1}}, cast_to=object)
    assert changed["limits"] == {"requests_per_minute": 1}
    with pytest.raises(RateLimitError):
        ask(fresh)
    admin.post(f"/keys/{made['id']}/limits", body={"limits": {"requests_per_minute": None}}, cast_to=object)
    admin.post("/tenants/acme/limits", body={"limits": {"cost_per_month": 2.5}}, cast_to=object)
    tenants = admin.get("/tenants", cast_to=object)["data"]
    assert {each["tenant"]: each["limits"] for each in tenants} == {"acme": {"cost_per_month": 2.5}, "operators": {}}
    assert admin.delete(f"/keys/{made['id']}", cast_to=object)["state"] == "revoked"
    with pytest.raises(AuthenticationError):
        ask(fresh)
    (used,) = admin.get("/usage", options={"params": {"by": "key_id", "tenant": "acme"}}, cast_to=object)["data"]
    assert (used["key_id"], used["requests"]) == (made["id"], 3)
    rows = admin.get("/audit", options={"params": {"action": "key.*"}}, cast_to=object)["data"]
    assert {row["actor"] for row in rows if row["target"] == made["id"]} == {record.id}
    assert all(row["address"] == "127.0.0.1" for row in rows if row["target"] == made["id"])
    verify(store)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/keys", {"tenant": "A B"}, "tenant"),
        ("/keys", {"tenant": "a", "scope": []}, "scope"),
        ("/keys", {"tenant": "a", "scopes": ["x"]}, "x"),
        ("/keys", {"tenant": "a", "limits": {"x": 1}}, "x"),
        ("/keys", {"tenant": "a", "limits": {"cost_per_day": -1}}, "cost_per_day"),
        ("/keys", {"tenant": 5}, "tenant"),
        ("/keys", [], "object"),
        ("/keys/none/limits", {"limits": {}}, "none"),
        ("/keys/none/rotate", {"grace": 1}, "grace"),
        ("/tenants/none/limits", {"limits": {}}, "none"),
    ],
)
def test_bad_input_over_http(shop, path, body, said):
    secret = shop.key("operators", scopes=["admin"])[1]
    shop.until(secret, 200)
    got = httpx.post(f"{shop.base_url}{path}", json=body, headers={"Authorization": f"Bearer {secret}"})
    assert got.status_code in (400, 404)
    assert said in got.json()["error"]["message"]
    assert (
        httpx.get(f"{shop.base_url}/usage?by=colour", headers={"Authorization": f"Bearer {secret}"}).status_code == 400
    )
    assert httpx.get(f"{shop.base_url}/audit?limit=x", headers={"Authorization": f"Bearer {secret}"}).status_code == 400


def test_an_admin_of_the_server_does_not_read_what_tenants_asked(shop):
    mine, _ = shop.client("acme")
    admin, _ = shop.client("operators", scopes=[*EVERYTHING, "admin"])
    trace = ask(mine).id
    with pytest.raises(NotFoundError):
        admin.get(f"/traces/{trace}", cast_to=object)


def test_a_server_without_keys_hands_none_out(server):
    for method, path in (("GET", "/keys"), ("GET", "/audit"), ("GET", "/usage"), ("GET", "/tenants")):
        refused = httpx.request(method, f"{server.base_url}{path}")
        assert refused.status_code == 403 and "--keys" in refused.json()["error"]["message"]
    assert httpx.post(f"{server.base_url}/keys", json={"tenant": "x", "scopes": ["admin"]}).status_code == 403


def test_keys_that_are_not_asked_for_are_said_loudly(store, start, make_fake, caplog):
    create_key(store, "acme")
    start({"m": make_fake("m")}, store=store)
    assert "1 keys" in caplog.text and "--keys" in caplog.text


def test_a_public_address_with_keys_of_the_store(store, start, make_fake):
    server = start({"m": make_fake("m")}, store=store, keys=True, host="0.0.0.0")
    assert httpx.get(f"{server.base_url}/models").status_code == 401
