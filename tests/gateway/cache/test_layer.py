"""The cache over real HTTP, with engines that count how often they are asked."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import fakeredis
import httpx
import numpy as np
import pytest
from openai import InternalServerError

from luthier.core.engine import EMBED, GENERATE, STREAM, EngineInfo, Generation, Sampling
from luthier.core.errors import EngineError, InputError, StoreError
from luthier.core.message import Message
from luthier.gateway.access.caller import Caller
from luthier.gateway.cache.config import CacheConfig, Policy, Semantic
from luthier.gateway.cache.layer import Cache, cached
from luthier.gateway.cache.semantic import Embedder, SemanticIndex
from luthier.gateway.calls import Piece
from luthier.gateway.config import read_config
from luthier.gateway.exchange import Exchange
from luthier.gateway.layers import Question
from luthier.gateway.targets.served import Served
from luthier.store.cache import MemoryCache, SqliteCache
from luthier.store.database import open_store
from luthier.store.keys import create_key
from luthier.store.traces import find_trace, list_traces

SURE = {"temperature": 0}


def ask(client, text="hello", model="m", **more):
    """(what it says, its cache header, its age)"""
    body = {"model": model, "messages": [{"role": "user", "content": text}], **SURE, **more}
    got = client.chat.completions.with_raw_response.create(**body)
    if body.get("stream"):
        said = "".join(chunk.choices[0].delta.content or "" for chunk in got.parse() if chunk.choices)
    else:
        said = got.parse().choices[0].message.content
    return said, got.headers["x-luthier-cache"], got.headers.get("age")


@pytest.fixture
def engine(scripted):
    return scripted(pieces=("one", " two"))


@pytest.fixture
def serve(start):
    def served(engines, **cache):
        return start(engines, config={"cache": cache or {"exact": True}})

    return served


def test_the_same_question_is_answered_once(serve, engine):
    server = serve({"m": engine})
    client = server.client()
    first = ask(client)
    assert first == ("one two", "miss", None)
    assert ask(client) == ("one two", "hit exact", "0")
    assert ask(client, stream=True) == ("one two", "hit exact", "0")
    assert ask(client, "other")[1] == "miss"
    assert ask(client, max_tokens=5)[1] == "miss"
    assert len(engine.asked) == 3
    state = httpx.get(f"{server.root}/health").json()["cache"]
    assert (state["exact"], state["miss"], state["kept"], state["hit_rate"]) == (2, 3, 3, 0.4)


def test_a_stream_is_kept_too_and_usage_is_the_same(serve, engine):
    client = serve({"m": engine}).client()
    assert ask(client, stream=True)[1] == "miss"
    raw = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}], **SURE)
    assert (raw.usage.prompt_tokens, raw.usage.completion_tokens, raw.choices[0].finish_reason) == (2, 2, "stop")
    stream = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hello"}],
        stream=True,
        stream_options={"include_usage": True},
        **SURE,
    )
    chunks = list(stream)
    assert chunks[-1].usage.total_tokens == 4
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(engine.asked) == 1


def test_a_trace_says_that_it_was_cached_and_it_costs_nothing(start, engine):
    server = start({"m": engine}, config={"cache": {"exact": True}}, price=["1,1"])
    client = server.client()
    for _ in range(2):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}], **SURE)
    ids = []
    deadline = time.monotonic() + 20
    while len(ids) < 2 and time.monotonic() < deadline:
        ids = [trace.id for trace in list_traces(server.store)]
    second, first = (find_trace(server.store, each) for each in ids)
    assert (first.cache, second.cache) == ("", "exact")
    assert first.cost > 0.0 == second.cost
    assert second.model_digest == first.model_digest
    assert second.details["cache"][0]["found"] == "exact"


def test_drawn_answers_are_kept_only_when_somebody_says_so(serve, engine):
    client = serve({"m": engine}).client()
    for _ in range(2):
        assert ask(client, temperature=0.7)[1] == "bypass"
        assert ask(client, temperature=None)[1] == "bypass"  # 1.0 by default
    assert ask(client, temperature=0.7, seed=1)[1] == "miss"
    assert ask(client, temperature=0.7, seed=1)[1] == "hit exact"
    said = {"extra_headers": {"Cache-Control": "sampled"}}
    assert [ask(client, temperature=0.9, **said)[1] for _ in range(2)] == ["miss", "hit exact"]
    other = serve({"m": engine}, exact=True, sampled=True).client()
    assert [ask(other, temperature=0.7)[1] for _ in range(2)] == ["miss", "hit exact"]


def test_what_a_client_says_in_cache_control(serve, engine):
    client = serve({"m": engine}).client()

    def control(said):
        return ask(client, extra_headers={"Cache-Control": said})[1]

    with pytest.raises(InternalServerError) as raised:
        control("only-if-cached")
    assert raised.value.code == "not_cached"
    assert not engine.asked
    assert [control("no-store"), control("no-cache"), control("no-cache")] == ["bypass", "miss", "miss"]
    assert control("") == "hit exact"
    assert [control("max-age=60"), control("only-if-cached"), control("no-store")] == [
        "hit exact",
        "hit exact",
        "bypass",
    ]
    assert len(engine.asked) == 4


def test_an_answer_grows_old():
    at_s = [1_800_000_000.0]
    store = MemoryCache(10, 1.0, clock=lambda: at_s[0])
    cache = Cache(CacheConfig(exact={"ttl_s": 100}), store, clock=lambda: at_s[0])
    made = Generation("yes", (), (), "stop")
    served = Served("m", SimpleNamespace(info=EngineInfo("m", "e", frozenset())))

    async def behind(question):
        yield Piece(0, "yes", made)

    def look(control=""):
        exchange = Exchange("chat", "m", Caller(), cache_control=control)
        question = Question(exchange, ((Message("user", "hello"),),), Sampling(), served=served)

        async def all_of_it():
            return [piece async for piece in cached(cache)(question, behind)]

        assert [piece.text for piece in asyncio.run(all_of_it())] == ["yes"]
        exchange.finish()
        return exchange.headers["X-Luthier-Cache"], exchange.headers.get("Age")

    assert look() == ("miss", None)
    at_s[0] += 60
    assert look() == ("hit exact", "60")
    assert look("max-age=59") == ("miss", None)  # and is new again
    at_s[0] += 99
    assert look() == ("hit exact", "99")
    at_s[0] += 2
    assert look() == ("miss", None)


@pytest.mark.parametrize("what", ["cut", "failed", "broken"])
def test_what_did_not_end_well_is_not_kept(serve, make_fake, what):
    options = {
        "cut": {"answers": {"hello": "one two three"}},
        "failed": {"fail": {"hello": "no luck"}},
        "broken": {"answers": {"hello": "one two three"}, "break_after": 1},
    }[what]
    client = serve({"m": make_fake("m", **options)}).client()
    for _ in range(2):
        try:
            assert ask(client, max_tokens=2 if what == "cut" else 50)[1] == "miss"
        except InternalServerError:
            assert what != "cut"


def test_tool_calls_are_not_kept_but_answers_beside_tools_are(serve, make_fake):
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    client = serve({"m": make_fake("m", tool_calls={"weather": {"name": "look", "arguments": {}}})}).client()
    for _ in range(2):
        got = client.chat.completions.with_raw_response.create(
            model="m", messages=[{"role": "user", "content": "weather"}], tools=[tool], **SURE
        )
        assert got.headers["x-luthier-cache"] == "miss"
        assert got.parse().choices[0].finish_reason == "tool_calls"
    assert [ask(client, "hello", tools=[tool])[1] for _ in range(2)] == ["miss", "hit exact"]


def test_several_choices_and_raw_text(serve, make_fake):
    client = serve({"m": make_fake("m")}).client()
    heads, texts = [], []
    for _ in range(2):
        got = client.completions.with_raw_response.create(
            model="m", prompt=["a", "b"], n=2, temperature=0.8, seed=3, logprobs=1, max_tokens=100
        )
        heads.append(got.headers["x-luthier-cache"])
        texts.append([(choice.index, choice.text, choice.logprobs.token_logprobs) for choice in got.parse().choices])
    assert heads == ["miss", "hit exact"]
    assert texts[0] == texts[1] and len(texts[0]) == 4


@pytest.fixture
def tenants(tmp_path, start, engine):
    """A server with keys, and a client for each of two tenants."""
    store = open_store(tmp_path / "home")
    secrets = [create_key(store, tenant)[1] for tenant in ("acme", "acme", "other")]

    def started(**cache):
        server = start({"m": engine}, store=store, keys=True, config={"cache": cache})
        return server, [server.client(api_key=secret) for secret in secrets]

    return started


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_tenant_does_not_hear_what_another_one_was_answered(tenants, engine, kind):
    _, (first, second, stranger) = tenants(exact=True, store=kind)
    assert ask(first, "our secret plan")[1] == "miss"
    assert ask(second, "our secret plan")[1] == "hit exact"
    assert ask(stranger, "our secret plan")[1] == "miss"
    with pytest.raises(InternalServerError):
        ask(stranger, "our other plan", extra_headers={"Cache-Control": "only-if-cached"})
    assert len(engine.asked) == 2


def test_a_question_that_is_being_answered_is_not_asked_again(serve, scripted):
    going = threading.Event()
    engine = scripted(before=lambda number: going.wait(20))
    server = serve({"m": engine})
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, server.client(), stream=bool(n % 2)) for n in range(8)]
        deadline = time.monotonic() + 20
        while not engine.asked and time.monotonic() < deadline:
            pass
        going.set()
        said = [each.result() for each in asked]
    assert {each[0] for each in said} == {"one two three"}
    assert len(engine.asked) == 1
    assert [each[1] for each in said].count("miss") == 1


def test_those_who_wait_ask_themselves_when_the_first_one_fails_or_leaves(serve, scripted):
    release, entered = threading.Event(), threading.Semaphore(0)
    failures = [EngineError("broken")]

    def before(number):
        entered.release()
        release.wait(20)
        if failures:
            raise failures.pop()

    engine = scripted(before=before)
    server = serve({"m": engine})
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, server.client())
        assert entered.acquire(timeout=20)
        others = [pool.submit(ask, server.client()) for _ in range(3)]
        release.set()
        with pytest.raises(InternalServerError):
            first.result()
        assert [each.result()[0] for each in others] == ["one two three"] * 3
    assert 2 <= len(engine.asked) <= 4

    release.clear()
    gone = httpx.Client(timeout=0.3)
    with pytest.raises(httpx.ReadTimeout):
        gone.post(
            f"{server.base_url}/chat/completions",
            json={"model": "m", "messages": [{"role": "user", "content": "new"}], **SURE},
        )
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, server.client(), "new")
        release.set()
        assert waiting.result()[0] == "one two three"


def test_sqlite_outlives_the_server(tmp_path, engine):
    from luthier.gateway.serve import running

    store = open_store(tmp_path / "home")
    config = {"cache": {"exact": True, "store": "sqlite"}}
    heads = []
    for _ in range(2):
        with running({"m": engine}, store=store, config=config) as base_url:
            body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **SURE}
            heads.append(httpx.post(f"{base_url}/chat/completions", json=body).headers["x-luthier-cache"])
    assert heads == ["miss", "hit exact"]


def test_redis_by_its_url_and_without(start, engine, monkeypatch):
    config = {"cache": {"exact": True, "store": "redis", "redis_url_env": "MY_REDIS"}}
    with pytest.raises(InputError, match="MY_REDIS"):
        start({"m": engine}, config=config)
    monkeypatch.setenv("MY_REDIS", "redis://127.0.0.1:1/0")
    monkeypatch.setattr("luthier.store.redis_cache._connect", lambda url: fakeredis.FakeRedis())
    client = start({"m": engine}, config=config).client()
    assert ask(client)[1] == "miss"
    deadline = time.monotonic() + 20
    while ask(client)[1] != "hit exact":
        assert time.monotonic() < deadline


def test_a_cache_that_is_down_costs_nothing_but_its_hits(start, engine, monkeypatch, caplog):
    monkeypatch.setenv("LUTHIER_REDIS_URL", "redis://127.0.0.1:1/0")
    server = start({"m": engine}, config={"cache": {"exact": True, "store": "redis"}})
    client = server.client()
    assert [ask(client)[:2] for _ in range(3)] == [("one two", "miss")] * 3
    assert caplog.text.count("requests go on without the cache") == 1
    assert httpx.get(f"{server.root}/health").json()["cache"]["errors"] >= 3


def test_stats_and_clearing_over_http(tenants, engine):
    server, (first, _, stranger) = tenants(exact=True)
    secret = create_key(server.store, "operators", scopes=["admin"])[1]
    ask(first), ask(stranger)
    deadline = time.monotonic() + 20
    while httpx.get(f"{server.base_url}/cache", headers={"Authorization": f"Bearer {secret}"}).status_code == 401:
        assert time.monotonic() < deadline
    admin = server.client(api_key=secret)
    assert [(each["tenant"], each["entries"]) for each in admin.get("/cache", cast_to=object)["by_model"]] == [
        ("acme", 1),
        ("other", 1),
    ]
    assert (
        httpx.delete(f"{server.base_url}/cache", headers={"Authorization": f"Bearer {first.api_key}"}).status_code
        == 403
    )
    assert admin.delete("/cache", options={"params": {"tenant": "acme"}}, cast_to=object) == {
        "object": "cache",
        "cleared": 1,
    }
    assert ask(first)[1] == "miss"
    assert ask(stranger)[1] == "hit exact"


def test_there_is_no_header_and_no_endpoint_without_a_cache(start, engine):
    server = start({"m": engine})
    got = server.client().chat.completions.with_raw_response.create(
        model="m", messages=[{"role": "user", "content": "x"}]
    )
    assert "x-luthier-cache" not in got.headers
    assert "cache" not in httpx.get(f"{server.root}/health").json()
    assert httpx.get(f"{server.base_url}/cache").status_code == 404


def test_text_that_is_no_unicode_is_answered_and_not_kept(serve, scripted):
    client = serve({"m": scripted(pieces=("half \ud83d",))}).client()
    assert [ask(client)[1] for _ in range(2)] == ["miss", "miss"]


# ---- by meaning


@pytest.fixture
def meaning(serve, engine, make_fake):
    def served(**more):
        return serve({"m": engine, "e": make_fake("e")}, semantic={"model": "e", "threshold": 0.7, **more}).client()

    return served


def test_a_question_in_other_words(meaning, engine):
    client = meaning(match="words")
    assert ask(client, "how do I reset my password")[1] == "miss"
    assert ask(client, "how can I reset my password") == ("one two", "hit semantic", "0")
    assert ask(client, "how do I reset my password")[1] == "hit semantic"
    assert ask(client, "how do I reset my account")[1] == "miss"
    assert ask(client, "how do I not reset my password")[1] == "miss"
    assert ask(client, "how do I reset my password", max_tokens=7)[1] == "miss"
    assert len(engine.asked) == 4
    loose = meaning()
    assert ask(loose, "please tell me how I do reset my old password")[1] == "miss"
    assert ask(loose, "please tell me how I do reset my new password")[1] == "hit semantic"


def test_another_conversation_is_not_the_same_question(meaning):
    client = meaning()
    turns = [{"role": "system", "content": "you are a bank"}, {"role": "user", "content": "how do I reset my password"}]
    assert ask(client, messages=turns)[1] == "miss"
    turns[0]["content"] = "you are a shop"
    assert ask(client, messages=turns)[1] == "miss"
    assert ask(client, "how can I reset my password")[1] == "miss"
    turns[1]["content"] = "how can I reset my password"
    assert ask(client, messages=turns)[1] == "hit semantic"


def test_meaning_stays_within_a_tenant(tmp_path, start, engine, make_fake):
    store = open_store(tmp_path / "home")
    secrets = [create_key(store, tenant)[1] for tenant in ("acme", "other")]
    config = {"cache": {"semantic": {"model": "e", "match": "meaning", "threshold": 0.1}}}
    server = start({"m": engine, "e": make_fake("e")}, store=store, keys=True, config=config)
    mine, theirs = (server.client(api_key=secret) for secret in secrets)
    assert ask(mine, "how do I reset my password")[1] == "miss"
    assert ask(mine, "how can I reset my password")[1] == "hit semantic"
    assert ask(theirs, "how do I reset my password")[1] == "miss"


def test_routes_say_otherwise(serve, engine, make_fake):
    client = serve(
        {"m": engine, "off": engine, "strict": engine, "e": make_fake("e")},
        exact=True,
        semantic={"model": "e", "match": "meaning", "threshold": 0.7},
        routes={"off": {"exact": False, "semantic": False}, "strict": {"semantic": {"threshold": 1.0}}},
    ).client()
    assert [ask(client, model="m")[1] for _ in range(2)] == ["miss", "hit exact"]
    assert ask(client, "hello to you", model="m")[1] == "miss"
    assert ask(client, "hello to you all", model="m")[1] == "hit semantic"
    assert [ask(client, model="off")[1] for _ in range(2)] == ["bypass", "bypass"]
    assert [ask(client, text, model="strict")[1] for text in ("hello to you", "hello to you all")] == ["miss", "miss"]


def test_an_embedder_that_fails_only_costs_its_hits(start, engine, scripted):
    class Broken(scripted):
        def embed(self, texts, progress=None):
            raise RuntimeError("no")

    broken = Broken(capabilities=frozenset({GENERATE, STREAM, EMBED}))
    config = {"cache": {"exact": True, "semantic": {"model": "e"}}}
    client = start({"m": engine, "e": broken}, config=config).client()
    assert [ask(client)[1] for _ in range(2)] == ["miss", "hit exact"]


def test_a_model_that_embeds_nothing_is_refused_at_the_start(start, engine):
    with pytest.raises(InputError, match="embed"):
        start({"m": engine}, config={"cache": {"semantic": {"model": "m"}}})


def test_the_embedder_answers_what_came_meanwhile_together(make_fake):
    inner, sizes, go = make_fake("e"), [], threading.Event()

    class Slow:
        info = inner.info

        def embed(self, texts):
            sizes.append(len(texts))
            assert go.wait(20)
            return inner.embed(texts)

        def close(self):
            sizes.append("closed")

    embedder = Embedder(Slow(), owned=True)

    async def all_of_them():
        asked = [asyncio.ensure_future(embedder.embed(f"text {n}")) for n in range(10)]
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(*asked)

    vectors = asyncio.run(all_of_them())
    embedder.close()
    assert np.allclose(vectors, inner.embed([f"text {n}" for n in range(10)]))
    assert len(sizes) <= 4 and sizes[-1] == "closed"


def test_texts_that_the_embedder_does_not_see_whole_are_left_alone(make_fake, tiny_encoder_path):
    class Bare:
        info = make_fake("e").info.with_(context_length=32)

    embedder = Embedder(Bare(), owned=False, tokenizer=tiny_encoder_path)
    assert embedder.reads("Please refund the deposit")
    assert not embedder.reads("Please refund the deposit 龘")
    assert not embedder.reads("refund " * 31)
    embedder.close()
    blind = Embedder(Bare(), owned=False)
    assert blind.reads("x" * 30) and not blind.reads("x" * 31)
    blind.close()


def test_the_index_gives_the_nearest_first_and_stays_bounded():
    index = SemanticIndex(100)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index.add("p", [(str(n), row.tobytes()) for n, row in enumerate(rows)])
    for probe in rows[:5]:
        found = list(index.near("p", probe, 0.2))
        cosines = rows @ probe
        expected = [str(n) for n in np.argsort(-cosines) if cosines[n] >= 0.2]
        assert [key for key, _ in found] == expected
        assert found[0][1] == pytest.approx(1.0, abs=1e-5)
    index.drop("p", "0")
    assert "0" not in [key for key, _ in index.near("p", rows[0], -1.0)]
    assert len(index) == 49
    index.add("p", [("1", rows[2].tobytes())])
    assert len(index) == 49
    assert dict(index.near("p", rows[2], 0.99)).keys() >= {"1", "2"}
    for number in range(300):
        index.add(f"q{number}", [("k", rows[0].tobytes())])
    assert len(index) <= 100
    assert list(index.near("q299", rows[0], 0.9)) and not list(index.near("p", rows[1], 0.9))
    index.add("big", [(str(n), rows[n % 50].tobytes()) for n in range(150)])
    assert len(index) <= 100
    assert "149" in [key for key, _ in index.near("big", rows[49], 0.9)], "the newest stay"
    index.add("q299", [("w", np.ones(3, np.float32).tobytes())])
    assert list(index.near("q299", rows[0], -1.0)) == [], "another embedder's vectors are not compared"
    index.clear()
    assert len(index) == 0


# ---- configuration


def test_the_section():
    off = read_config(None).cache
    assert not off and not read_config({"cache": {"exact": False}}).cache
    config = read_config({
        "cache": {
            "exact": {"ttl_s": 5}, "semantic": {"threshold": 0.8, "ttl_s": 9},
            "routes": {"a": {"exact": None}, "b": {"semantic": {"ttl_s": 1}, "sampled": True}, "c": {"semantic": False}},
        }
    }).cache  # fmt: skip
    assert config
    assert config.policy("x").exact.ttl_s == 5
    assert config.policy("a") == Policy(None, Semantic(threshold=0.8, ttl_s=9))
    assert config.policy("b").semantic == Semantic(threshold=0.8, ttl_s=1) and config.policy("b").sampled
    assert config.policy("c").semantic is None
    assert (Semantic().least_cosine, Semantic(match="words").least_cosine) == (0.95, 0.85)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"exact": {"ttl": 5}}, "ttl_s"),
        ({"exact": {"ttl_s": 0}}, "ttl_s"),
        ({"semantic": {"threshold": 1.5}}, "threshold"),
        ({"store": "disk"}, "store"),
        ({"exact": True, "store": "redis", "max_mb": 5}, "maxmemory"),
        ({"routes": {"a": {"semantic": {"model": "x"}}}}, "model"),
    ],
)
def test_what_the_section_refuses(section, said):
    with pytest.raises(InputError, match=said):
        read_config({"cache": section})


def test_a_store_that_breaks_in_the_middle_is_left_alone_for_a_moment(tmp_path):
    store = SqliteCache(tmp_path / "c.db", 10, None)
    cache = Cache(CacheConfig(exact=True), store)
    cache._failed(StoreError("gone"))

    async def look():
        await cache._in_thread(lambda: 1)

    with pytest.raises(StoreError, match="moment"):
        asyncio.run(look())
    cache.close()
    cache.close()


# ---- behind guardrails


def test_what_a_guardrail_stops_is_not_kept_and_what_it_hides_is_put_back_for_each_caller(start, scripted):
    engine = scripted(pieces=("I wrote to [EMAIL_1]",))
    rules = [
        {"name": "pii"},
        {"name": "topics", "on": "output", "deny": {"bad": {"words": ["forbidden"]}}, "action": "block"},
    ]
    server = start({"m": engine}, config={"cache": {"exact": True}, "guardrails": rules})
    client = server.client()
    assert ask(client, "write to ada@example.org")[:2] == ("I wrote to ada@example.org", "miss")
    assert ask(client, "write to bob@example.org")[:2] == ("I wrote to bob@example.org", "hit exact")
    assert len(engine.asked) == 1
    bad = scripted(pieces=("this is forbidden",))
    client = start({"m": bad}, config={"cache": {"exact": True}, "guardrails": rules}).client()
    for _ in range(2):
        assert ask(client, "say it")[1] == "miss"
    assert len(bad.asked) == 2
