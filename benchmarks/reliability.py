"""Does every request get an answer or a clean error while engines are killed under it?

    python benchmarks/reliability.py [--quick] [--minutes 5] [--every 10]

Two servers with slow fake engines stand for remote ones. A gateway in front of them has a route over both and the first of them by name.
Clients ask without a pause, whole answers and streams in turn, while one of the two is killed (SIGKILL) every ``--every`` seconds and started
again two seconds later. Counted are: answers, clean errors (an HTTP error or an event with an ``error`` object), and everything else, which must be
none: broken connections, bodies that are not JSON, streams that end without an end, requests that take longer than 30 s. In the end the gateway
must have one trace for each request. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

UPSTREAM = """
import sys, tempfile
from luthier.engines._target import EngineTarget
from luthier.engines.fake import Config, open as open_fake
from luthier.gateway.serve import serve
engine = open_fake(EngineTarget("m"), Config(latency_s=0.3))
serve({"m": engine}, port=int(sys.argv[1]), store=tempfile.mkdtemp(), max_concurrent=64, announce=lambda address: None)
"""
CLIENTS = 16
LONGEST_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Upstream:
    """One of the engines' servers, on a port of its own, that can be killed and started again."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-c", UPSTREAM, str(self.port)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def gateway(folder: Path, upstreams: list[Upstream]) -> subprocess.Popen[str]:
    targets = {
        name: {"model": f"openai:m@http://127.0.0.1:{each.port}/v1", "engine": "openai"}
        for name, each in zip("ab", upstreams, strict=True)
    }
    config = {"models": targets, "routes": {"both": {"strategy": "fallback", "targets": ["a", "b"]}}}
    path = folder / "gateway.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "luthier", "serve", "-c", str(path), "--port", "0", "--max-concurrent", "64"]
    environment = os.environ | {"LUTHIER_HOME": str(folder / "home"), "OPENAI_API_KEY": "unused"}
    log = (folder / "log").open("w")
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)


async def ask(client: httpx.AsyncClient, model: str, *, stream: bool) -> str:
    """``answer``, ``error N`` (clean), or what was wrong."""
    body = {"model": model, "messages": [{"role": "user", "content": "Where is my parcel?"}], "stream": stream}
    start = time.perf_counter()
    try:
        response = await client.post("/v1/chat/completions", json=body)
        said = _read(response, stream=stream)
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        said = f"WRONG {type(error).__name__}"
    return said if time.perf_counter() - start < LONGEST_S else "WRONG slow"


def _read(response: httpx.Response, *, stream: bool) -> str:
    if response.status_code != 200:
        return f"error {response.status_code}" if response.json()["error"]["message"] else "WRONG empty error"
    if not stream:
        return "answer" if response.json()["choices"][0]["message"]["content"] else "WRONG empty answer"
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    if events[-1] == "[DONE]":
        ends = [json.loads(event)["choices"][0]["finish_reason"] for event in events[:-1]]
        return "answer" if ends[-1] == "stop" else "WRONG end"
    return "error event" if json.loads(events[-1])["error"]["message"] else "WRONG event"


async def load(url: str, until: float) -> Counter[str]:
    counts: Counter[str] = Counter()

    async def one(number: int) -> None:
        model = "a" if number % 4 == 0 else "both"
        turn = number
        while time.monotonic() < until:
            turn += 1
            counts[f"{model}: {await ask(client, model, stream=bool(turn % 2))}"] += 1

    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=LONGEST_S + 5, limits=limits) as client:
        await asyncio.gather(*(one(number) for number in range(CLIENTS)))
    return counts


async def kill_in_turn(upstreams: list[Upstream], until: float, every_s: float) -> int:
    killed = 0
    while time.monotonic() + every_s < until:
        await asyncio.sleep(every_s - 2)
        upstreams[killed % 2].kill()
        await asyncio.sleep(2)
        upstreams[killed % 2].start()
        killed += 1
    return killed


async def measure(url: str, upstreams: list[Upstream], minutes: float, every_s: float) -> tuple[Counter[str], int]:
    until = time.monotonic() + 60 * minutes
    counts, killed = await asyncio.gather(load(url, until), kill_in_turn(upstreams, until, every_s))
    return counts, killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one minute")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds from kill to kill")
    asked = parser.parse_args()
    upstreams = [Upstream(), Upstream()]
    with tempfile.TemporaryDirectory() as folder:
        for each in upstreams:
            each.start()
        server = gateway(Path(folder), upstreams)
        assert server.stdout is not None
        try:
            url = next(line.split()[-1] for line in server.stdout if line.startswith("Serving on ")).removesuffix("/v1")
            minutes = 1.0 if asked.quick else asked.minutes
            counts, killed = asyncio.run(measure(url, upstreams, minutes, asked.every))
            httpx.get(f"{url}/v1/traces/none", timeout=60)  # unknown: everything that waits is written first
            health = httpx.get(f"{url}/health").json()
        finally:
            server.terminate()
            server.wait()
            for each in upstreams:
                each.kill()
    requests = sum(counts.values())
    wrong = sum(count for name, count in counts.items() if "WRONG" in name)
    for name, count in sorted(counts.items()):
        print(f"{name:<30} {count:>8,}")
    figures: dict[str, Any] = {"requests": requests, "killed": killed, "counts": dict(counts), "wrong": wrong}
    figures["traces_written"], figures["traces_dropped"] = health["traces"]["written"], health["traces"]["dropped"]
    quality = {"nothing_wrong": wrong == 0, "a_trace_each": health["traces"]["written"] == requests}
    print(json.dumps({"benchmark": "reliability", "ratios": {}, "figures": figures, "quality": quality}))


if __name__ == "__main__":
    main()
