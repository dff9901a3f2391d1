from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from luthier.core.errors import InputError, NotFoundError
from luthier.gateway.serve import Settings, bind, running, serve
from luthier.store.database import open_store
from luthier.store.traces import list_traces

HELLO = [{"role": "user", "content": "hello"}]


def test_serving_by_name(home: Any) -> None:
    with running(["fake", "fake:yes,no"]) as base_url:
        body = {"model": "fake:yes,no", "messages": HELLO}
        answer = httpx.post(f"{base_url}/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] in ("yes", "no")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{base_url}/models")
    assert [trace.id for trace in list_traces(open_store())] == [answer["id"]]


def test_a_port_in_use_is_said_before_any_model_loads(home: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} .*in use") as raised, running("no-such-model", port=port):
            pass
        assert raised.value.exit_code == 2
        offered = int(str(raised.value).rsplit(" ", 1)[1])
        assert offered != port
        with bind("127.0.0.1", offered):
            pass


def test_two_servers_cannot_take_one_port(home: Any) -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match="in use"), bind("127.0.0.1", port):
            pass


def test_a_public_host_without_a_key_is_refused_first(home: Any) -> None:
    with pytest.raises(InputError, match="host"), running("no-such-model", host="0.0.0.0"):
        pass
    with pytest.raises(InputError, match="host"):
        serve("no-such-model", host="::")


def test_a_public_host_with_a_key(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", "secret")
    with running("fake", host="0.0.0.0", api_key_env="K") as base_url:
        assert base_url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{base_url}/models").status_code == 401
        known = {"authorization": "Bearer secret", "host": "models.example.org"}
        assert httpx.get(f"{base_url}/models", headers=known).status_code == 200


@pytest.mark.parametrize(
    ("models", "settings", "words"),
    [
        ([], {}, "at least one"),
        (["fake", "fake"], {}, "named twice"),
        ("fake", {"port": 70000}, "port"),
        ("fake", {"max_concurrent": 0}, "max_concurrent"),
        ("fake", {"host": "no.such.host.invalid", "api_key_env": "K"}, "host"),
        ("fake", {"host": "192.0.2.1", "api_key_env": "K"}, "host"),
        ("fake", {"api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
        ("fake", {"price": ["cheap"]}, "price"),
    ],
)
def test_bad_settings(
    home: Any, monkeypatch: pytest.MonkeyPatch, models: Any, settings: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("K", "secret")
    with pytest.raises(InputError, match=words), running(models, **settings):
        pass


def test_an_unknown_model(home: Any) -> None:
    with pytest.raises(NotFoundError, match="smollm2"), running("smollm2"):
        pass


def test_settings_have_defaults_that_stay_on_this_machine() -> None:
    assert (Settings().host, Settings().port, Settings().api_key_env) == ("127.0.0.1", 8000, None)


def test_ipv6(home: Any) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with running("fake", host="::1") as base_url:
        assert base_url.startswith("http://[::1]:")
        assert httpx.get(f"{base_url}/models").status_code == 200


def test_engines_that_were_given_stay_open(start: Any, scripted: Any, home: Any) -> None:
    engine = scripted()
    with running({"m": engine}):
        pass
    assert not engine.ended.is_set()


def test_the_end_waits_for_what_runs(scripted: Any, home: Any) -> None:
    go, begun = threading.Event(), threading.Event()

    def before(number: int) -> None:
        begun.set()
        go.wait(20)

    answers: list[Any] = []
    engine = scripted(before=before)

    def ask(base_url: str) -> None:
        answers.append(httpx.post(f"{base_url}/chat/completions", json={"model": "m", "messages": HELLO}, timeout=30))

    with running({"m": engine}) as base_url:
        client = threading.Thread(target=ask, args=(base_url,))
        client.start()
        assert begun.wait(20)
        threading.Timer(0.3, go.set).start()
    client.join(20)
    assert answers[0].json()["choices"][0]["message"]["content"] == "one two three"
    assert [trace.answer for trace in list_traces(open_store())] == ["one two three"]


def test_what_runs_longer_than_the_grace_is_stopped(scripted: Any, home: Any) -> None:
    pause = threading.Event()
    engine = scripted(pieces=["x"] * 10_000, before=lambda number: pause.wait(0.02))
    with running({"m": engine}, grace_s=0) as base_url:
        body = {"model": "m", "messages": HELLO, "stream": True}
        with httpx.stream("POST", f"{base_url}/chat/completions", json=body) as stream:
            next(stream.iter_bytes())
    assert engine.ended.is_set()
    assert engine.given < 10_000
    (trace,) = list_traces(open_store())
    assert trace.error
    assert trace.answer.startswith("x")


SERVER = """
import sys, threading
import luthier
from luthier.core.engine import Delta, EngineInfo, Generation
class Slow:
    info = EngineInfo(model="slow", engine="slow", capabilities=frozenset({"generate", "stream"}))
    def stream(self, prompt, sampling):
        yield Delta("begun")
        threading.Event().wait(0.6)
        yield Delta(" ended")
        yield Delta("", Generation("begun ended", (1, 2), (), "stop", prompt_tokens=1, completion_tokens=2))
    def close(self): pass
luthier.serve({"slow": Slow()}, port=0)
print("left in order", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_order(home: Path, number: signal.Signals) -> None:
    """A stream that runs when the signal comes is finished, its trace is written, and the process ends well."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, env=dict(os.environ), bufsize=1
    )
    try:
        assert process.stdout is not None
        base_url = process.stdout.readline().removeprefix("Serving on ").strip()
        body = {"model": "slow", "messages": HELLO, "stream": True}
        with httpx.stream("POST", f"{base_url}/chat/completions", json=body, timeout=30) as stream:
            events = stream.iter_text()
            text = next(events)
            process.send_signal(number)
            text += "".join(events)
        assert " ended" in text
        assert text.endswith("data: [DONE]\n\n")
        assert "left in order" in process.stdout.read()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert [trace.answer for trace in list_traces(open_store(home))] == ["begun ended"]


FOLLOWING = """
import luthier, sys
luthier.serve((), port=0, config=sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal of POSIX")
@pytest.mark.parametrize("how", ["saved", "signal"])
def test_a_running_server_follows_its_file(home: Path, tmp_path: Path, how: str) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("models: {a: 'fake:a'}")
    process = subprocess.Popen(
        [sys.executable, "-c", FOLLOWING, str(path)], stdout=subprocess.PIPE, text=True, env=dict(os.environ), bufsize=1
    )
    try:
        assert process.stdout is not None
        base_url = process.stdout.readline().removeprefix("Serving on ").strip()
        path.write_text("models: {a: 'fake:a', b: 'fake:b'}")
        deadline = time.monotonic() + 30
        names: list[str] = []
        while names != ["a", "b"] and time.monotonic() < deadline:
            if how == "signal":
                process.send_signal(signal.SIGHUP)
            names = [each["id"] for each in httpx.get(f"{base_url}/models").json()["data"]]
        assert names == ["a", "b"]
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
