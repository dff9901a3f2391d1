"""Batches over real HTTP with the official client: what is asked, how, and what becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import httpx
import pytest
from openai import APIStatusError, BadRequestError, ConflictError, NotFoundError
from sqlalchemy import update

from luthier.core.errors import EngineError, InputError
from luthier.gateway.api.wire import RequestError
from luthier.gateway.batch.batches import read_window
from luthier.gateway.batch.run import WAITS_S
from luthier.store import batches as stored
from luthier.store.database import open_store
from luthier.store.files import file_path, find_file
from luthier.store.keys import create_key, limit_key, revoke_key
from luthier.store.tables import batches
from luthier.store.traces import list_traces
from luthier.store.usage import list_usage

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def line(number, endpoint=CHAT, **body):
    asked = {"messages": [{"role": "user", "content": f"question {number}"}]} if endpoint == CHAT else {}
    return {"custom_id": f"c{number}", "method": "POST", "url": endpoint, "body": {"model": "m", **asked, **body}}


def begin(client, lines, endpoint=CHAT, window="24h", **more):
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    file = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window=window, **more)


def ended(client, batch, *states):
    deadline = time.monotonic() + 60
    while batch.status not in (states or ("completed", "failed", "expired", "cancelled")):
        assert time.monotonic() < deadline, batch
        batch = client.batches.retrieve(batch.id)
    return batch


def rows(client, file_id):
    return {row["custom_id"]: row for row in map(json.loads, client.files.content(file_id).text.splitlines())}


def test_a_batch_is_answered_and_its_lines_go_together(start, scripted):
    engine = scripted(pieces=("yes", "!"))
    server = start({"m": engine}, config={"batch": {"rows": 16}})
    client = server.client()
    batch = begin(client, [line(n) for n in range(50)], metadata={"job": "nightly"})
    assert (batch.status, batch.metadata, batch.endpoint) == ("validating", {"job": "nightly"}, CHAT)
    batch = ended(client, batch)
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (50, 50, 0)
    assert batch.error_file_id is None and batch.completed_at >= batch.in_progress_at >= batch.created_at
    answers = rows(client, batch.output_file_id)
    assert set(answers) == {f"c{n}" for n in range(50)}
    body = answers["c7"]["response"]["body"]
    assert (body["object"], body["choices"][0]["message"]["content"]) == ("chat.completion", "yes!")
    assert body["usage"] == {
        "prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4, "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    assert engine.batches == [16, 16, 16, 2]
    assert len({row["response"]["request_id"] for row in answers.values()}) == 50
    assert {trace.id for trace in list_traces(server.store, limit=1000)} == {
        r["response"]["request_id"] for r in answers.values()
    }
    asked = [prompt[0].content for prompt, _ in engine.asked]
    assert sorted(asked) == sorted(f"question {n}" for n in range(50))
    assert not list((server.store.home.root / "batches").iterdir())


def test_each_answer_goes_to_its_own_line(start, make_fake):
    client = start({"m": make_fake("m")}, config={"batch": {"rows": 7}}).client()
    lines = [line(n, max_tokens=10 + n % 2) for n in range(20)] + [line(99, n=2, seed=1, temperature=1.0)]
    answers = rows(client, ended(client, begin(client, lines)).output_file_id)
    for each in lines:
        alone = client.chat.completions.create(**each["body"])
        got = answers[each["custom_id"]]["response"]["body"]
        assert [choice["message"]["content"] for choice in got["choices"]] == [c.message.content for c in alone.choices]
        assert got["usage"]["total_tokens"] == alone.usage.total_tokens


def test_completions_and_embeddings(start, make_fake):
    client = start({"m": make_fake("m")}).client()
    batch = begin(client, [line(n, COMPLETIONS, prompt=f"text {n}") for n in range(3)], COMPLETIONS)
    answers = rows(client, ended(client, batch).output_file_id)
    alone = client.completions.create(model="m", prompt="text 1")
    assert answers["c1"]["response"]["body"]["choices"][0]["text"] == alone.choices[0].text
    lines = [
        line(n, EMBEDDINGS, input=[f"text {n}", "more"] if n else "text 0", encoding_format="float") for n in range(3)
    ]
    answers = rows(client, ended(client, begin(client, lines, EMBEDDINGS)).output_file_id)
    for each in lines:
        alone = client.embeddings.create(**each["body"])
        got = answers[each["custom_id"]]["response"]["body"]
        assert [row["embedding"] for row in got["data"]] == [row.embedding for row in alone.data]


def test_lines_that_are_wrong_do_not_hurt_the_others(start, make_fake):
    engine = make_fake("m", context_length=8, fail={"question 5": "it broke"})
    client = start({"m": engine}, config={"batch": {"rows": 8}}).client()
    lines = [line(n) for n in range(20)]
    lines[3] = line(3, messages=[{"role": "user", "content": "too long " * 20}])
    lines[7] = line(7, foo=1)
    lines[9] = line(9, model="none")
    lines[11] = line(11, stream=True)
    batch = ended(client, begin(client, lines))
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 15, 5)
    failed = rows(client, batch.error_file_id)
    codes = {name: row["response"]["body"]["error"]["code"] for name, row in failed.items()}
    statuses = {name: row["response"]["status_code"] for name, row in failed.items()}
    assert statuses == {"c3": 400, "c5": 502, "c7": 400, "c9": 404, "c11": 400}
    assert (codes["c7"], codes["c9"]) == ("unknown_field", "model_not_found")
    assert len(rows(client, batch.output_file_id)) == 15


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        ([line(1), "{broken"], "invalid_json_line", 2),
        ([line(1), line(1)], "duplicate_custom_id", 2),
        ([line(1), line(2, COMPLETIONS, prompt="x")], "mismatched_url", 2),
        ([line(n) for n in range(6)], "too_many_lines", 6),
        ([" "], "empty_file", None),
    ],
)
def test_a_broken_file_fails_as_a_whole_and_nothing_is_asked(start, scripted, lines, code, number):
    engine = scripted()
    client = start({"m": engine}, config={"batch": {"max_lines": 5}}).client()
    batch = ended(client, begin(client, lines))
    assert batch.status == "failed" and batch.failed_at
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, number)
    assert batch.output_file_id is None and not engine.asked


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/files"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "99d"}, "completion_window"),
        ({"input_file_id": 5}, "input_file_id"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"foo": 1}, "foo"),
    ],
)
def test_bad_requests(server, change, param):
    body = {"input_file_id": "file_1", "endpoint": CHAT, "completion_window": "24h", **change}
    got = httpx.post(f"{server.base_url}/batches", json=body)
    assert (got.status_code, got.json()["error"]["param"]) == (400, param)


def test_windows():
    assert read_window("24h") == timedelta(days=1) and read_window("14d") == timedelta(days=14)
    for text in ("", "0h", "15d", "24", "h", "-1h", "1h ", "1.5h", "٣h"):
        with pytest.raises(RequestError):
            read_window(text)


def test_unknown_batches_pages_and_limits(start, scripted):
    going = threading.Event()
    engine = scripted(before=lambda number: going.wait(30))
    client = start({"m": engine}, config={"batch": {"max_open": 3}}).client()
    for call in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(NotFoundError):
            call("batch_none")
    made = [begin(client, [line(n)]).id for n in range(3)]
    with pytest.raises(APIStatusError) as raised:
        begin(client, [line(9)])
    assert (raised.value.status_code, raised.value.code) == (429, "too_many_batches")
    assert [each.id for each in client.batches.list(limit=2)] == made[::-1]
    assert client.batches.list(limit=2).has_more
    with pytest.raises(BadRequestError):
        client.batches.list(limit=101)
    going.set()
    for each in made:
        done = ended(client, client.batches.retrieve(each))
        assert done.status == "completed"
    output = client.batches.retrieve(made[0]).output_file_id
    with pytest.raises(BadRequestError, match="purpose"):
        client.batches.create(input_file_id=output, endpoint=CHAT, completion_window="24h")
    with pytest.raises(ConflictError):
        client.batches.cancel(made[0])


def test_cancelling_stops_the_engine_and_keeps_what_is_answered(start, scripted):
    at_second, go = threading.Event(), threading.Event()

    def before(number):
        if len(engine.asked) > 2:
            at_second.set()
            go.wait(30)

    engine = scripted(before=before)
    client = start({"m": engine}, config={"batch": {"rows": 2}}).client()
    batch = begin(client, [line(n) for n in range(10)])
    assert at_second.wait(30)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch)
    go.set()
    assert batch.status == "cancelled" and batch.cancelled_at
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 8)
    assert {row["error"]["code"] for row in rows(client, batch.error_file_id).values()} == {"batch_cancelled"}
    assert len(rows(client, batch.output_file_id)) == 2


def test_a_batch_that_takes_too_long_expires(start, scripted):
    entered, go = threading.Event(), threading.Event()

    def before(number):
        entered.set()
        go.wait(30)

    server = start({"m": scripted(before=before)})
    client = server.client()
    first = begin(client, [line(1)])
    assert entered.wait(30)
    late = begin(client, [line(n) for n in range(3)])
    with server.store.write() as connection:
        connection.execute(update(batches).where(batches.c.id == late.id).values(expires_at="2026-01-01T00:00:00.000Z"))
    go.set()
    assert ended(client, first).status == "completed"
    late = ended(client, late)
    assert (
        late.status == "expired" or late.request_counts.completed
    )  # it may have been begun before its time was changed
    if late.status == "expired":
        assert {row["error"]["code"] for row in rows(client, late.error_file_id).values()} == {"batch_expired"}


@pytest.fixture
def tenants(tmp_path, start):
    """A server with keys, and a client for each of two tenants with their records."""
    store = open_store(tmp_path / "home")
    made = [create_key(store, tenant, scopes=("inference", "batch"), models=["m"]) for tenant in ("acme", "other")]

    def started(engines, **settings):
        server = start(engines, store=store, keys=True, **settings)
        return server, [(server.client(api_key=secret), record) for record, secret in made]

    return started


def test_another_tenants_batches_are_not_there(tenants, make_fake):
    server, ((mine, record), (stranger, _)) = tenants(
        {"m": make_fake("m"), "hidden": make_fake("hidden")}, price=["1,1"]
    )
    batch = ended(mine, begin(mine, [line(1), line(2, model="hidden")]))
    for call in (stranger.batches.retrieve, stranger.batches.cancel):
        with pytest.raises(NotFoundError):
            call(batch.id)
    for file_id in (batch.output_file_id, batch.error_file_id, batch.input_file_id):
        with pytest.raises(NotFoundError):
            stranger.files.content(file_id)
    assert list(stranger.batches.list()) == []
    assert rows(mine, batch.error_file_id)["c2"]["response"]["status_code"] == 404, "a model that the key does not see"
    assert {trace.tenant for trace in list_traces(server.store)} == {"acme"}
    assert {trace.key_id for trace in list_traces(server.store)} == {record.id}


def test_lines_are_paid_for_and_a_used_up_budget_makes_them_wait(tmp_path, start, make_fake, monkeypatch):
    monkeypatch.setitem(WAITS_S, "insufficient_quota", 0.05)
    store = open_store(tmp_path / "home")
    limits = {"tokens_per_day": 300, "requests_per_minute": 1, "concurrent_requests": 1}
    record, secret = create_key(store, "acme", scopes=("inference", "batch"), limits=limits)
    server = start({"m": make_fake("m")}, store=store, keys=True, price=["1,1"])
    mine = server.client(api_key=secret)
    batch = begin(mine, [line(n, max_tokens=100) for n in range(4)])
    deadline = time.monotonic() + 30
    while mine.batches.retrieve(batch.id).status != "in_progress" and time.monotonic() < deadline:
        pass
    limit_key(server.store, record.id, {"tokens_per_day": 10_000})
    batch = ended(mine, batch)
    assert batch.request_counts.completed == 4, "rates of a minute do not hold for batches"
    asked = list_traces(server.store, limit=1000)
    tokens = sum(trace.prompt_tokens + trace.completion_tokens for trace in asked)
    while not list_usage(server.store):
        assert time.monotonic() < deadline
    (used,) = list_usage(server.store, by=["key_id"])
    assert used["prompt_tokens"] + used["completion_tokens"] == tokens
    assert used["cost"] == pytest.approx(tokens / 1e6)


def test_a_key_that_is_revoked_ends_its_batches(tenants, scripted):
    entered, go = threading.Event(), threading.Event()

    def before(number):
        entered.set()
        go.wait(30)

    server, ((mine, record), _) = tenants({"m": scripted(before=before)}, config={"batch": {"rows": 1}})
    batch = begin(mine, [line(n) for n in range(4)])
    assert entered.wait(30)
    revoke_key(server.store, record.id)
    deadline = time.monotonic() + 20
    while (
        httpx.get(f"{server.base_url}/models", headers={"Authorization": f"Bearer {mine.api_key}"}).status_code == 200
    ):
        assert time.monotonic() < deadline
    go.set()
    while (found := stored.find_batch(server.store, batch.id)).status not in ("failed", "completed"):
        assert time.monotonic() < deadline
    assert (found.status, found.errors[0]["code"]) == ("failed", "key_revoked")
    assert found.completed < 4


def test_an_input_that_is_deleted_fails_its_batch(start, make_fake):
    client = start({"m": make_fake("m")}, config={"batch": {"enabled": False}}).client()
    batch = begin(client, [line(1)])
    client.files.delete(batch.input_file_id)
    assert client.batches.retrieve(batch.id).status == "validating"  # this server leaves batches to others


def test_an_engine_that_is_down_for_a_moment_is_asked_again(start, scripted, monkeypatch):
    monkeypatch.setitem(WAITS_S, "no_target", 0.05)
    failures = [EngineError("overloaded", retryable=True)] * 12

    def before(number):
        if failures:
            raise failures.pop()

    config = {"batch": {"rows": 4}, "models": {"m": {"breaker": {"open_s": 0.2}}}}
    client = start({"m": scripted(before=before)}, config=config).client()
    batch = ended(client, begin(client, [line(n) for n in range(4)]))
    assert batch.request_counts.completed == 4


def test_guardrails_and_caches_decide_about_each_line(start, scripted):
    engine = scripted(pieces=("fine",))
    rules = [{"name": "topics", "on": "input", "deny": {"bad": {"words": ["question 3"]}}, "action": "block"}]
    server = start({"m": engine}, config={"guardrails": rules, "cache": {"exact": True}})
    client = server.client()
    lines = [line(n, temperature=0) for n in range(6)] + [{**line(2, temperature=0), "custom_id": "again"}]
    batch = ended(client, begin(client, lines))
    answers = rows(client, batch.output_file_id) if batch.output_file_id else {}
    assert len(engine.asked) == 5, "one is blocked, one is cached"
    assert {"again", "c0", "c5"} <= set(answers)
    blocked = answers.get("c3") or rows(client, batch.error_file_id)["c3"]
    assert "fine" not in json.dumps(blocked)


def test_online_requests_go_first(start, scripted):
    """One turn at the gate: what comes online while a batch waits is answered before the batch's next lines."""
    order, entered, go = [], threading.Event(), threading.Event()

    def before(number):
        if number == 0:
            order.append(engine.asked[-1][0][-1].content)
        if len(order) == 1:
            entered.set()
            go.wait(30)

    engine = scripted(before=before)
    server = start({"m": engine}, config={"batch": {"rows": 1}}, max_concurrent=1)
    client = server.client()
    batch = begin(client, [line(n) for n in range(5)])
    assert entered.wait(30)
    online = [
        threading.Thread(
            target=lambda: client.chat.completions.create(model="m", messages=[{"role": "user", "content": "online"}])
        )
        for _ in range(2)
    ]
    for each in online:
        each.start()
    deadline = time.monotonic() + 30
    while httpx.get(f"{server.root}/health").json()["requests"]["waiting"] < 2:
        assert time.monotonic() < deadline
    go.set()
    for each in online:
        each.join()
    ended(client, batch)
    assert order[1:3] == ["online", "online"]


SERVER = """
import sys
from luthier.engines._target import EngineTarget
from luthier.engines.fake import Config
from luthier.engines.fake import open as open_fake
from luthier.gateway.serve import serve

engine = open_fake(EngineTarget("m"), Config(latency_s=0.02))
inner = engine.generate

def generate(prompts, sampling, *more):
    with open(sys.argv[1], "a") as file:
        file.write("".join(prompt[-1].content + "\\n" for prompt in prompts))
    return inner(prompts, sampling, *more)

engine.generate = generate
serve({"m": engine}, port=0, config={"batch": {"rows": 4}}, announce=lambda address: print(address.base_url, flush=True))
"""


def test_a_killed_server_goes_on_where_it_was_and_asks_nothing_twice_that_was_written(home, tmp_path):
    log = tmp_path / "asked"

    def server():
        child = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(log)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        return child, child.stdout.readline().strip()

    from openai import OpenAI

    child, url = server()
    client = OpenAI(base_url=url, api_key="x", max_retries=0)
    batch = begin(client, [line(n) for n in range(60)])
    results = home / "batches" / batch.id / "results.jsonl"
    deadline = time.monotonic() + 60
    while not results.exists() or results.read_bytes().count(b"\n") < 12:
        assert time.monotonic() < deadline
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    written = {json.loads(each)["custom_id"] for each in results.read_text().splitlines()}
    before = log.read_text().splitlines()
    assert 12 <= len(written) < 60
    with open_store().write() as connection:  # as if its lease were over: nobody waits for that here
        connection.execute(update(batches).values(lease_until_s=0.0))
    child, url = server()
    try:
        client = OpenAI(base_url=url, api_key="x", max_retries=0)
        batch = ended(client, client.batches.retrieve(batch.id))
    finally:
        child.terminate()
        child.wait(20)
    assert (batch.status, batch.request_counts.completed) == ("completed", 60)
    after = log.read_text().splitlines()[len(before) :]
    assert not {f"question {name[1:]}" for name in written} & set(after)
    assert len(after) == 60 - len(written)
    store = open_store()
    made = find_file(store, batch.output_file_id, "local")
    assert len({json.loads(each)["custom_id"] for each in file_path(store, made).read_text().splitlines()}) == 60


def test_a_server_that_ends_hands_its_batches_over_at_once(tmp_path, scripted):
    from openai import OpenAI

    from luthier.gateway.serve import running

    store = open_store(tmp_path / "home")
    entered, go = threading.Event(), threading.Event()

    def before(number):
        entered.set()
        go.wait(30)

    slow, quick = scripted(before=before), scripted()
    with running({"m": slow}, store=store, grace_s=0) as url:
        client = OpenAI(base_url=url, api_key="x", max_retries=0)
        batch = begin(client, [line(n) for n in range(3)])
        assert entered.wait(30)
    go.set()
    assert stored.find_batch(store, batch.id).worker is None
    with running({"m": quick}, store=store) as url:
        client = OpenAI(base_url=url, api_key="x", max_retries=0)
        assert ended(client, client.batches.retrieve(batch.id)).request_counts.completed == 3


def test_a_server_without_keys_leaves_tenants_batches_alone(tmp_path, start, make_fake):
    store = open_store(tmp_path / "home")
    theirs = stored.create_batch(
        store,
        tenant="acme",
        key_id="k",
        endpoint=CHAT,
        input_file="f",
        window="24h",
        expires_at="2999-01-01T00:00:00.000Z",
    )
    server = start({"m": make_fake("m")}, store=store)
    client = server.client()
    assert ended(client, begin(client, [line(1)])).status == "completed"
    assert stored.find_batch(store, theirs.id).status == "validating"


def test_the_section_of_the_configuration():
    from luthier.gateway.config import read_config

    assert read_config(None).batch.rows == 32
    with pytest.raises(InputError, match="rows"):
        read_config({"batch": {"rows": 0}})
