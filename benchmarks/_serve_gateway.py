"""The gateway alone: what its own work costs when the engine costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
QUESTION = {"model": "fake", "messages": [{"role": "user", "content": "Where is my parcel? It was sent last Tuesday."}]}
STREAMED = QUESTION | {"stream": True, "stream_options": {"include_usage": True}}


@contextmanager
def serving(*arguments: str, home: str | None = None) -> Iterator[tuple[str, int]]:
    """``luthier serve ...`` in a process of its own on a free port: (base URL without /v1, process id)."""
    import os

    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"LUTHIER_HOME": home or folder}
        command = [sys.executable, "-m", "luthier", "serve", *arguments, "--port", "0"]
        with (Path(folder) / "log").open("w") as log:
            server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
            assert server.stdout is not None
            try:
                url = next(line.split()[-1] for line in server.stdout if line.startswith("Serving on "))
                yield url.removesuffix("/v1"), server.pid
            finally:
                server.terminate()
                server.wait()


def load(url: str, bodies: list[dict[str, Any]], requests: int, **how: Any) -> dict[str, Any]:
    """One run of the load generator: requests a second, percentiles in milliseconds, statuses, tokens a second."""
    work = {"url": url, "bodies": bodies, "requests": requests, **how}
    ran = subprocess.run(
        [sys.executable, str(HERE / "_load.py")], input=json.dumps(work), capture_output=True, text=True, check=True
    )
    said = json.loads(ran.stdout)
    taken, first = sorted(said["latency_s"]), sorted(said["first_s"])

    def ms(values: list[float], share: float) -> float:
        return round(1000 * values[min(len(values) - 1, int(share * len(values)))], 3) if values else 0.0

    return {
        "per_s": round(len(taken) / said["seconds"], 2),
        "tokens_per_s": round(said["tokens"] / said["seconds"], 2),
        "p50_ms": ms(taken, 0.5),
        "p99_ms": ms(taken, 0.99),
        "first_p50_ms": ms(first, 0.5),
        "statuses": said["statuses"],
    }


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def run(*, quick: bool) -> dict[str, Any]:
    """Requests a second, latency at 500 a second, memory over many requests, and whether every trace was written."""
    total = 20_000 if quick else 200_000
    figures: dict[str, Any] = {}
    with serving("fake", "--engine", "fake", "--max-concurrent", "64", "--max-queue", "1024") as (base, pid):
        url = f"{base}/v1/chat/completions"
        load(url, [QUESTION], 1000, concurrency=16)  # warm
        figures["closed_16"] = load(url, [QUESTION], 5000, concurrency=16)
        figures["streamed_16"] = load(url, [STREAMED], 3000, concurrency=16)
        figures["open_500"] = load(url, [QUESTION], 5000, rate=500)
        asked, memory = 14_000, [resident_mb(pid)]
        for _ in range(10):
            said = load(url, [QUESTION], total // 10, concurrency=16)
            assert said["statuses"] == {"200": total // 10}, said["statuses"]
            memory.append(resident_mb(pid))
        asked += total
        httpx.get(f"{base}/v1/traces/none")  # unknown: everything that waits is written first
        figures["memory_mb"] = [round(each, 1) for each in memory]
        figures["memory_requests"] = total
        figures["memory_growth_mb"] = round(memory[-1] - memory[2], 1)
        traces = httpx.get(f"{base}/health").json()["traces"]
        figures["traces"] = {"asked": asked, "written": traces["written"], "dropped": traces["dropped"]}
    return figures
