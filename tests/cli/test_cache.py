from __future__ import annotations

import json
import time

import fakeredis
import pytest

from luthier.cli import main
from luthier.engines._target import EngineTarget
from luthier.engines.fake import Config
from luthier.engines.fake import open as open_fake
from luthier.gateway.serve import running
from luthier.store.audit import list_audit
from luthier.store.cache import FILE_NAME, Entry, SqliteCache
from luthier.store.database import open_store
from luthier.store.redis_cache import RedisCache


@pytest.fixture
def run(home, capsys):
    """(exit code, stdout, stderr) of ``luthier cache ...``."""

    def ran(*arguments):
        code = 0
        try:
            main(["cache", *arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return ran


def fill(store):
    store.put(
        [Entry(f"k{n}", tenant, "m", time.time() - 5, 60.0, b"x") for n, tenant in enumerate(("acme", "acme", "other"))]
    )


def test_the_file_of_the_home(run):
    assert "Nothing is kept" in run("stats")[2]
    fill(SqliteCache(open_store().home.root / FILE_NAME, None, None))
    code, out, err = run("stats")
    assert code == 0 and "acme" in out and "3 answers" in err
    assert json.loads(run("stats", "--json")[1])["entries"] == 3
    assert run("clear", "--tenant", "acme")[1] == "2 answers are forgotten\n"
    assert run("clear", "--model", "n")[1] == "0 answers are forgotten\n"
    assert json.loads(run("stats", "--json")[1])["by_model"][0]["tenant"] == "other"
    assert list_audit(open_store())[-1].detail == {"tenant": "acme", "model": None, "entries": 2}


def test_redis(run, monkeypatch):
    assert run("stats", "--store", "redis")[0] == 2
    server = fakeredis.FakeServer()
    monkeypatch.setenv("MY_REDIS", "redis://nowhere:1/0")
    monkeypatch.setattr("luthier.store.redis_cache._connect", lambda url: fakeredis.FakeRedis(server=server))
    fill(RedisCache(""))
    assert json.loads(run("stats", "--store", "redis", "--redis-url-env", "MY_REDIS", "--json")[1])["entries"] == 3
    assert run("clear", "--store", "redis", "--redis-url-env", "MY_REDIS")[1] == "3 answers are forgotten\n"


def test_a_running_server(run):
    import httpx

    engine = open_fake(EngineTarget("m"), Config())
    with running({"m": engine}, config={"cache": {"exact": True}}) as base_url:
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
        for _ in range(2):
            httpx.post(f"{base_url}/chat/completions", json=body).raise_for_status()
        code, out, err = run("stats", "--server", base_url)
        assert code == 0 and "50.0%" in err and "local" in out
        assert run("clear", "--server", base_url)[1] == "1 answers are forgotten\n"
    with running({"m": engine}) as base_url:
        code, _, err = run("stats", "--server", base_url)
        assert code == 2 and "no cache" in err
    assert run("stats", "--server", base_url)[0] == 6
    assert run("stats", "--server", base_url, "--api-key-env", "NOT_SET_ANYWHERE")[0] == 2
