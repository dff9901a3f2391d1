"""The three stores of kept answers, through the same checks."""

from __future__ import annotations

import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fakeredis
import numpy as np
import pytest
import redis

from luthier.core.engine import Generation, TokenLogprob
from luthier.core.errors import InputError, StoreError
from luthier.store.cache import Entry, MemoryCache, SqliteCache, pack, unpack
from luthier.store.redis_cache import RedisCache

NOW = 1_800_000_000.0


class Clock:
    at_s = NOW

    def __call__(self):
        return self.at_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def cache(request, tmp_path, clock):
    if request.param == "memory":
        return MemoryCache(100, 1.0, clock=clock)
    if request.param == "sqlite":
        return SqliteCache(tmp_path / "cache.db", 100, 1.0, clock=clock)
    return RedisCache("", client=fakeredis.FakeRedis(), clock=clock)


def entry(key="k", tenant="acme", model="m", **more):
    return Entry(key, tenant, model, **{"made_at_s": NOW, "ttl_s": 60.0, "data": b"data of " + key.encode(), **more})


def test_what_was_put_is_found_by_its_owner_only(cache):
    cache.put([entry("a"), entry("b", tenant="other"), entry("c", model="n")])
    found = cache.get("a", "acme", "m")
    assert (found.key, found.data, found.made_at_s, found.ttl_s) == ("a", b"data of a", NOW, 60.0)
    assert cache.get("b", "acme", "m") is None
    assert cache.get("c", "acme", "m") is None
    assert cache.get("none", "acme", "m") is None
    assert cache.get("b", "other", "m").data == b"data of b"
    cache.put([entry("a", data=b"new")])
    assert cache.get("a", "acme", "m").data == b"new"
    assert cache.stats()["entries"] == 3


def test_an_entry_ends(cache, clock):
    cache.put([entry("a"), entry("b", ttl_s=10.0)])
    clock.at_s += 9.99
    assert cache.get("b", "acme", "m") is not None
    clock.at_s += 0.01
    assert cache.get("b", "acme", "m") is None
    assert cache.get("a", "acme", "m") is not None
    cache.trim()
    if not isinstance(cache, RedisCache):  # Redis has a clock of its own
        assert cache.stats()["entries"] == 1


def test_clearing_by_tenant_by_model_and_all(cache):
    names = [("acme", "m"), ("acme", "n"), ("other", "m"), ("other", "n")]
    for number, (tenant, model) in enumerate(names):
        cache.put([entry(f"k{number}", tenant, model)])
    assert cache.clear(tenant="acme", model="n") == 1
    assert cache.clear(tenant="nobody") == 0
    assert cache.clear(model="m") == 2
    assert [each["tenant"] for each in cache.stats()["by_model"]] == ["other"]
    assert cache.clear() == 1
    assert cache.stats()["entries"] == 0


def test_stats(cache, clock):
    cache.put([entry("a", data=b"x" * 1000), entry("b", tenant="other", made_at_s=NOW - 50)])
    clock.at_s += 5
    stats = cache.stats()
    assert [(each["tenant"], each["model"], each["entries"]) for each in stats["by_model"]] == [
        ("acme", "m", 1),
        ("other", "m", 1),
    ]
    assert stats["by_model"][0]["size_bytes"] >= 1000
    assert stats["size_bytes"] == sum(each["size_bytes"] for each in stats["by_model"])
    assert stats["oldest_s"] == 55.0


def test_threads(cache):
    def work(number):
        for n in range(20):
            cache.put([entry(f"{number}-{n}", data=b"x" * number)])
            assert cache.get(f"{number}-{n}", "acme", "m").data == b"x" * number

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert cache.stats()["entries"] == 80


def test_memory_drops_what_was_least_used():
    cache = MemoryCache(2, 1.0, clock=Clock())
    cache.put([entry("a"), entry("b")])
    cache.get("a", "acme", "m")
    cache.put([entry("c")])
    assert [cache.get(key, "acme", "m") is not None for key in "abc"] == [True, False, True]
    small = MemoryCache(1000, 0.002, clock=Clock())
    small.put([entry(str(n), data=b"x" * 100) for n in range(50)])
    assert 1 < small.stats()["entries"] < 5
    assert small.stats()["size_bytes"] <= 2000
    small.put([entry("huge", data=b"x" * 5000)])
    assert small.get("huge", "acme", "m") is None and small.get("49", "acme", "m") is not None


def test_the_sqlite_file_is_private_bounded_and_shared(tmp_path):
    path = tmp_path / "cache.db"
    first = SqliteCache(path, 3, None, clock=Clock())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = SqliteCache(path, None, 0.001, clock=Clock())
    first.put([entry(str(n)) for n in range(5)])
    first.trim()
    assert [second.get(str(n), "acme", "m") is not None for n in range(5)] == [False, False, True, True, True]
    second.trim()
    assert second.stats()["entries"] == 2
    first.close()
    second.close()
    with pytest.raises(StoreError, match=r"cache\.db"):
        first.get("1", "acme", "m")


def test_an_old_or_broken_sqlite_file(tmp_path):
    path = tmp_path / "cache.db"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE entries (something TEXT)")
    SqliteCache(path, 10, None, clock=Clock()).put([entry()])
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match="delete the file"):
        SqliteCache(broken, 10, None)


def vector(*values):
    return np.asarray(values, np.float32).tobytes()


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_processes_hear_of_one_anothers_vectors(kind, tmp_path, clock):
    server = fakeredis.FakeServer()

    def process():
        if kind == "sqlite":
            return SqliteCache(tmp_path / "cache.db", 100, 1.0, clock=clock)
        return RedisCache("", client=fakeredis.FakeRedis(server=server), clock=clock)

    here, there = process(), process()
    here.put([entry("a", partition="p", vector=vector(1, 0)), entry("x")])
    rows, mark = there.vectors("p", "")
    assert rows == [("a", vector(1, 0))]
    assert there.vectors("p", mark) == ([], mark)
    here.clear(tenant="acme")
    here.put([entry("b", partition="p", vector=vector(0, 1)), entry("c", partition="q", vector=vector(1, 1))])
    rows, later = there.vectors("p", mark)
    assert rows == [("b", vector(0, 1))] and later != mark
    assert there.vectors("none", "") == ([], "")


def test_redis_that_is_not_there_is_a_store_error_without_its_password():
    cache = RedisCache("redis://:hunter2@127.0.0.1:1/0")
    for call in (lambda: cache.get("k", "a", "m"), lambda: cache.put([entry()]), cache.clear, cache.stats):
        with pytest.raises(StoreError) as raised:
            call()
        assert "hunter2" not in str(raised.value)
    with pytest.raises(InputError, match="redis://"):
        RedisCache("localhost:6379")


def test_redis_ends_entries_itself():
    client = fakeredis.FakeRedis()
    cache = RedisCache("", client=client, clock=lambda: NOW)
    cache.put([entry("a", ttl_s=1.5, partition="p", vector=vector(1))])
    assert sorted(0 < client.pttl(name) <= 1500 for name in client.keys("*")) == [True, True]
    assert isinstance(client, redis.Redis)


def test_answers_come_back_as_a_client_sees_them():
    tokens = (TokenLogprob(b"\xe6\x88", -0.5, ((b"\xe6\x88", -0.5), (b"a", -1.25))), TokenLogprob(b"\x91", -0.125))
    made = Generation(
        "我", (5, 6), (1, 2, 3), "stop", logprob=-0.625, first_token_s=0.5, latency_s=2.0, prompt_tokens=3,
        completion_tokens=2, reasoning="because", tokens=tokens, cached_tokens=2,
    )  # fmt: skip
    gone = {"token_ids": (), "prompt_token_ids": (), "first_token_s": 0.0, "latency_s": 0.0, "cached_tokens": 0}
    assert unpack(pack([made, made])) == (replace(made, **gone),) * 2
