"""Luthier in front of llama.cpp beside llama.cpp's own HTTP server: the same GGUF, threads, slots and requests, in turn.

Each server is a process of its own: llama.cpp's (started by xllamacpp, in its defaults) over TCP, and ``luthier serve`` with engine llamacpp. The
load generator is a third process. Requests go to /v1/chat/completions, whole and streamed, greedy, as many tokens as are allowed; prompts
are new in each round and the same on both sides. The ratios are medians over rounds in which the sides take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODEL = "smollm2-135m"
CONTEXT, SLOTS = 1024, 8
SUBJECTS = (
    "a lighthouse",
    "the first bread",
    "a clockmaker",
    "rain in May",
    "two rivers",
    "an old map",
    "night trains",
    "salt",
)


def compare(
    home: Path | None = None,
    *,
    weights: str = "source",
    threads: int = 2,
    tokens: int = 32,
    concurrencies: tuple[int, ...] = (1, 8, 32),
    rounds: int = 5,
    most_requests: int = 32,
) -> dict[str, Any]:
    """``{"ratios", "figures"}``: throughput (tokens of answers a second) over llama.cpp's own, and what the middle request waits longer
    at concurrency 1, in milliseconds. ``home`` is the store that has the model (the user's own when left out)."""
    places = dict(os.environ) | ({"LUTHIER_HOME": str(home)} if home else {})
    options = {"type": weights, "threads": threads, "parallel": SLOTS, "context_length": CONTEXT}
    file = _gguf(weights, places)
    figures: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    number = 0
    with _server("peer", {"file": file, **options}, places) as peer, _server("ours", options, places) as ours:
        for streamed in (False, True):
            for url in (peer, ours):
                _load(url, 2, 2, tokens, streamed, -1)
            for concurrency in concurrencies:
                count = max(4, min(most_requests, 4 * concurrency))
                pairs = []
                for _ in range(rounds):
                    number += 1
                    pair = [
                        _load(url, concurrency, count, tokens, streamed, number) for url in _turn(peer, ours, number)
                    ]
                    pairs.append(pair if number % 2 else pair[::-1])
                name = f"{'streamed' if streamed else 'whole'}_{concurrency}"
                figures[name] = {"llama.cpp": _middle(p[0] for p in pairs), "luthier": _middle(p[1] for p in pairs)}
                ratios[f"{name}_throughput"] = round(
                    statistics.median(p[1]["tokens_per_s"] / p[0]["tokens_per_s"] for p in pairs), 3
                )
                figures[name]["added_p50_ms"] = round(
                    statistics.median(p[1]["p50_ms"] - p[0]["p50_ms"] for p in pairs), 2
                )
                figures[name]["added_first_ms"] = round(
                    statistics.median(p[1]["first_ms"] - p[0]["first_ms"] for p in pairs), 2
                )
                print(name, ratios[f"{name}_throughput"], json.dumps(figures[name]), flush=True)
    return {"ratios": ratios, "figures": figures}


def _turn(peer: str, ours: str, number: int) -> tuple[str, str]:
    return (peer, ours) if number % 2 else (ours, peer)


def _middle(runs: Any) -> dict[str, float]:
    runs = list(runs)
    return {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}


def _load(url: str, concurrency: int, requests: int, tokens: int, streamed: bool, number: int) -> dict[str, float]:
    """One run of the load generator. Raises RuntimeError when a request is not answered or its tokens are not counted."""
    bodies: list[dict[str, Any]] = []
    for each in range(requests):
        asked = f"Story {number}-{each}: write a very long story about {SUBJECTS[each % len(SUBJECTS)]} and {number + each} birds."
        body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": asked}]}
        body |= {"max_tokens": tokens, "temperature": 0.0}
        body |= {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
        bodies.append(body)
    work = {"url": f"{url}/chat/completions", "bodies": bodies, "requests": requests, "concurrency": concurrency}
    done = subprocess.run(
        [sys.executable, str(HERE / "_load.py")], input=json.dumps(work), capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    if result["statuses"] != {"200": requests} or not result["tokens"]:
        raise RuntimeError(f"{url}: {result['statuses']}, {result['tokens']} tokens")
    return {
        "tokens_per_s": result["tokens"] / result["seconds"],
        "tokens": result["tokens"],
        "p50_ms": 1000 * statistics.median(result["latency_s"]),
        "first_ms": 1000 * statistics.median(result["first_s"]),
    }


def _gguf(weights: str, places: dict[str, str]) -> str:
    code = (
        "import sys; from luthier.store.database import open_store; from luthier.store.models import find; "
        "from luthier.engines.llamacpp import find_files; s = open_store(); "
        f"print(find_files(s, find(s, {MODEL!r}), {weights!r}).base)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=places, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


@contextmanager
def _server(side: str, options: dict[str, Any], places: dict[str, str]) -> Iterator[str]:
    """The address of a server in a process of its own, as clients write it (ends in ``/v1``)."""
    command = [sys.executable, str(HERE / "_serve_llamacpp.py"), "--side", side, "--options", json.dumps(options)]
    with subprocess.Popen(command, env=places, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            for line in process.stdout:
                if line.startswith("http"):
                    break
            else:
                raise RuntimeError(f"the server {side} did not start")
            yield line.strip()
        finally:
            process.stdin.close()
            process.terminate()


def serve_peer(options: dict[str, Any]) -> None:
    """llama.cpp's own server, as it comes, until stdin ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options["file"]
    params.hostnames, params.port, params.verbosity = ["127.0.0.1"], 0, -1
    params.n_parallel, params.n_ctx = options["parallel"], options["parallel"] * options["context_length"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options["threads"]
    server = xllamacpp.Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    sys.stdin.read()


def serve_ours(options: dict[str, Any]) -> None:
    """``luthier serve MODEL --engine llamacpp``, until SIGTERM."""
    from luthier.gateway.serve import serve

    def announce(address: Any) -> None:
        print(address.base_url, flush=True)

    serve(MODEL, engine="llamacpp", options=options, port=0, max_concurrent=64, announce=announce, grace_s=0.0)


def main() -> None:
    """One side as a server, or the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=("peer", "ours"))
    parser.add_argument("--options", type=json.loads)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--weights", default="source")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    given = parser.parse_args()
    if given.side:
        {"peer": serve_peer, "ours": serve_ours}[given.side](given.options)
        return
    found = compare(
        given.home, weights=given.weights, threads=given.threads, tokens=given.tokens, rounds=given.rounds,
        concurrencies=tuple(given.concurrency),
    )  # fmt: skip
    print(json.dumps({"benchmark": "serve_llamacpp", **found}))


if __name__ == "__main__":
    main()
