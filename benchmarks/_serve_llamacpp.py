"""Luthier in front of llama.cpp beside llama.cpp's own HTTP server: the same GGUF, threads, slots and requests, in turn.

Each server is a process of its own: llama.cpp's (started by xllamacpp, in its defaults) over TCP, and ``luthier serve`` with engine llamacpp. The
load generator is a third process. Requests go to /v1/chat/completions, whole and streamed, greedy, as many tokens as are allowed; prompts
are new in each round and the same on both sides. The ratios are medians over rounds in which the sides take turns. Then how much earlier an
answer begins when its system prompt of 1,500 tokens was read before.
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
CONTEXT, SLOTS, TOKENS, MOST_REQUESTS = 2048, 8, 32, 32
BARS = {"throughput": 0.97, "added_p50_ms": 3.0, "first_token_saved": 0.8}
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
RULES = "The desk answers questions about parcels, refunds, lessons and passwords, briefly and kindly. "


def run(
    *,
    quick: bool = False,
    home: Path | None = None,
    weights: str = "source",
    threads: int = 2,
    rounds: int | None = None,
) -> dict[str, Any]:
    """``{"ratios", "quality", ...}``: throughput (tokens of answers a second) over llama.cpp's own, what the middle request waits longer at
    concurrency 1, and the share of the time to the first token that a known system prompt saves. ``home`` is the store that has
    the model (the user's own when left out)."""
    places = dict(os.environ) | ({"LUTHIER_HOME": str(home)} if home else {})
    options = {"type": weights, "threads": threads, "parallel": SLOTS, "context_length": CONTEXT}
    file = _gguf(weights, places)
    rounds = rounds or (3 if quick else 7)
    found: dict[str, Any] = {"ratios": {}, "quality": {"bars": BARS}}
    with _server("peer", {"file": file, **options}, places) as peer, _server("ours", options, places) as ours:
        for streamed in (False, True):
            for url in (peer, ours):
                _load(url, 2, 2, streamed, -1)
            for concurrency in (1, 8, 32):
                name = f"{'streamed' if streamed else 'whole'}_{concurrency}"
                figures = _rounds((peer, ours), concurrency, streamed, rounds)
                found["ratios"][f"llamacpp_{name}"] = figures["throughput"]
                found[name] = figures
                print(name, json.dumps(figures), flush=True)
        found["prefix"] = _prefix(ours)
    found["ratios"]["llamacpp_first_token_saved"] = found["prefix"]["saved"]
    found["quality"]["llamacpp_tokens"] = {
        name: [found[name]["llama.cpp"]["tokens"], found[name]["luthier"]["tokens"]] for name in found if "_" in name
    }
    return found


def _rounds(urls: tuple[str, str], concurrency: int, streamed: bool, rounds: int) -> dict[str, Any]:
    pairs = []
    for number in range(rounds):
        made = [
            _load(url, concurrency, max(4, min(MOST_REQUESTS, 4 * concurrency)), streamed, 100 * concurrency + number)
            for url in (urls if number % 2 else urls[::-1])
        ]
        pairs.append(made if number % 2 else made[::-1])
    middle = [{key: round(statistics.median(p[side][key] for p in pairs), 2) for key in pairs[0][0]} for side in (0, 1)]
    added = {
        f"added_{key}": round(statistics.median(p[1][key] - p[0][key] for p in pairs), 2)
        for key in ("p50_ms", "first_ms")
    }
    throughput = round(statistics.median(p[1]["tokens_per_s"] / p[0]["tokens_per_s"] for p in pairs), 3)
    return {"throughput": throughput, **added, "llama.cpp": middle[0], "luthier": middle[1]}


def _prefix(url: str) -> dict[str, float]:
    """Time to the first token under a system prompt of 1,500 tokens: read for the first time, and known."""
    first, later = [], []
    for number in range(3):
        system = f"Desk {number}. " + RULES * 88
        took = [_load(url, 1, 1, True, number, system=system, tokens=2)["first_ms"] for _ in range(4)]
        first.append(took[0])
        later += took[1:]
    fresh, known = statistics.median(first), statistics.median(later)
    return {"first_ms": round(fresh, 1), "known_ms": round(known, 1), "saved": round(1 - known / fresh, 3)}


def _load(
    url: str, concurrency: int, requests: int, streamed: bool, number: int, *, system: str = "", tokens: int = TOKENS
) -> dict[str, float]:
    """One run of the load generator. Raises RuntimeError when a request is not answered or its tokens are not counted."""
    bodies: list[dict[str, Any]] = []
    for each in range(requests):
        subject = SUBJECTS[each % len(SUBJECTS)]
        asked = f"Story {number}-{each}: write a very long story about {subject} and {number + each} birds."
        before = [{"role": "system", "content": system}] if system else []
        body: dict[str, Any] = {"model": MODEL, "messages": [*before, {"role": "user", "content": asked}]}
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
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--weights", default="source", help="source (Q4_1), F16, Q8_0 ...")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if given.side:
        {"peer": serve_peer, "ours": serve_ours}[given.side](given.options)
        return
    found = run(quick=given.quick, home=given.home, weights=given.weights, threads=given.threads, rounds=given.rounds)
    print(json.dumps({"benchmark": "serve_llamacpp", **found}))


if __name__ == "__main__":
    main()
