"""How fast and how well does a large knowledge base find? 100,000 chunks through ``KnowledgeBase.search``, 1,000,000 vectors within 4 GB.

    python benchmarks/vectors.py --texts FILE.jsonl [FILE.jsonl ...] [--chunks 100000] [--million] [--quick]

The files have a field ``text``. Some thousand of their sentences are embedded by the base's own model; a chunk is two of them, and its vector lies between
theirs, with a little noise: vectors with the clusters of real ones, and none the same. Questions are made alike from sentences that are in no
chunk. ``--million`` adds a million such rows in a process of its own, whose peak memory is what the system counts (getrusage). There is no peer.
``--quick``: 20,000 chunks. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MOST_MB, MOST_P50_MS, LEAST_RECALL = 4096, 30.0, 0.95
QUERIES, HELD_OUT = 200, 400
TIMES = 100
STEP = 5_000
OF_DOCUMENT = 50


def sentences(files: list[Path], most: int) -> list[str]:
    """Sentences of 40 to 240 characters, in an order that is always the same."""
    found: dict[str, None] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            cut = re.split(r"(?<=[.!?。！？])\s*", json.loads(line)["text"])
            found |= dict.fromkeys(each.strip() for each in cut if 40 <= len(each.strip()) <= 240)
    listed = list(found)
    return [listed[place] for place in np.random.default_rng(0).permutation(len(listed))[:most]]


def between(vectors: Any, one: Any, two: Any, rng: Any) -> Any:
    """Directions between pairs of ``vectors``, nearer to the first."""
    share = rng.uniform(0.5, 0.8, len(one))[:, None].astype(np.float32)
    noise = 0.01 * rng.standard_normal((len(one), vectors.shape[1])).astype(np.float32)
    out = share * vectors[one] + (1 - share) * vectors[two] + noise
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def rows(texts: list[str], vectors: Any, count: int) -> Iterator[list[Any]]:
    """``count`` rows of an index, some thousand at a time."""
    from luthier.core.document import Chunk
    from luthier.knowledge.index import IndexRow

    rng = np.random.default_rng(1)
    for start in range(0, count, STEP):
        size = min(STEP, count - start)
        one, two = rng.integers(0, len(texts), size), rng.integers(0, len(texts), size)
        made = between(vectors, one, two, rng)
        yield [
            IndexRow(
                Chunk(f"c{n}", f"{texts[one[place]]} {texts[two[place]]}", n % OF_DOCUMENT, (0, 0), tokens=50),
                document=f"doc_{n // OF_DOCUMENT}",
                source=f"/docs/{n // OF_DOCUMENT}.txt",
                labels=("team",) if n // OF_DOCUMENT % 4 == 0 else (),
                vector=made[place],
            )
            for place, n in enumerate(range(start, start + size))
        ]


def timed(ask: Callable[[int], object], times: int = TIMES) -> dict[str, float]:
    """Milliseconds of one call, after a few to warm up; ``cpu_ms`` of all processors, which other work on the machine does not change."""
    for place in range(5):
        ask(place)
    took, cpu = [], time.process_time()
    for place in range(times):
        start = time.perf_counter()
        ask(place)
        took.append((time.perf_counter() - start) * 1000)
    cpu_ms = (time.process_time() - cpu) / times * 1000
    p50, p99 = np.percentile(took, [50, 99])
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2), "cpu_ms": round(cpu_ms, 2)}


def peak_mb() -> float:
    """The most memory that this process has had at once, resident."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 0)


def fill(index: Any, texts: list[str], vectors: Any, count: int) -> dict[str, float]:
    """Add and index rows; seconds of both, wall and processor."""
    start, cpu = time.perf_counter(), time.process_time()
    for some in rows(texts, vectors, count):
        index.add(some)
    added, added_cpu = time.perf_counter(), time.process_time()
    added_mb = peak_mb()
    index.optimize()
    return {
        "add_s": round(added - start, 1),
        "optimize_s": round(time.perf_counter() - added, 1),
        "add_cpu_s": round(added_cpu - cpu, 1),
        "optimize_cpu_s": round(time.process_time() - added_cpu, 1),
        "peak_mb_after_add": added_mb,
        "peak_mb_after_optimize": peak_mb(),
    }


def hundred_thousand(chunks: int, texts: list[str], vectors: Any, questions: list[str]) -> dict[str, Any]:
    """A base of its own, searched as users search."""
    import luthier
    from luthier.knowledge.base import create_base
    from luthier.knowledge.index import Filter
    from luthier.knowledge.recall import measure
    from luthier.store.database import open_store
    from luthier.store.knowledge import DocumentRecord, put_documents

    engine = luthier.load("minilm-l6")
    out: dict[str, Any] = {"chunks": chunks}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["LUTHIER_HOME"] = str(home)
        store = open_store()
        with create_base("big", engine=engine, store=store) as base:
            records = [
                DocumentRecord(f"doc_{n}", "big", f"/docs/{n}.txt", "0" * 64, chunks=OF_DOCUMENT)
                for n in range((chunks + OF_DOCUMENT - 1) // OF_DOCUMENT)
            ]
            put_documents(store, "big", records)
            out |= fill(base.index, texts, vectors, chunks)
            print("filled", out, flush=True)
            asked = base.embedder.embed_queries(questions)
            out["recall"] = measure(base.index, asked, 10).as_dict()
            known = dict(zip(questions, asked, strict=True))
            print("recall", out["recall"], flush=True)
            out["embed_question"] = timed(lambda n: base.embedder.embed_queries([questions[n % len(questions)]]))
            alone = base.embedder.embed_queries
            for name in ("dense", "keyword", "hybrid"):
                steps = [{"name": name}]
                ask = lambda n, steps=steps: base.search(questions[n % len(questions)], 5, retrieval=steps)  # noqa: E731
                out[name] = timed(ask)
                print(name, out[name], flush=True)
                base.embedder.embed_queries = lambda some: np.stack([known[each] for each in some])  # type: ignore[method-assign]
                out[f"{name}, question embedded before"] = timed(ask)
                base.embedder.embed_queries = alone  # type: ignore[method-assign]
            where = Filter(labels=("team",))
            out["hybrid with access labels"] = timed(lambda n: base.search(questions[n % len(questions)], 5, where))
            out |= incremental(base, home / "files")
    return out


def incremental(base: Any, folder: Path) -> dict[str, float]:
    """One more file into the full base, and out of it again."""
    folder.mkdir()
    file = folder / "new.txt"
    file.write_text("\n\n".join(f"A new paragraph about quokkas, number {n}." for n in range(20)), encoding="utf-8")
    start = time.perf_counter()
    base.add([file])
    added = time.perf_counter()
    found = base.search("a paragraph about quokkas", 1)
    assert found and found[0].source == str(file)
    again = time.perf_counter()
    base.add([file])
    unchanged = time.perf_counter()
    base.remove([str(file)])
    return {
        "add_one_file_ms": round((added - start) * 1000, 1),
        "add_unchanged_file_ms": round((unchanged - again) * 1000, 1),
        "remove_one_file_ms": round((time.perf_counter() - unchanged) * 1000, 1),
    }


def million(count: int, data: Path) -> dict[str, Any]:
    """In this process: rows in, questions answered, memory counted."""
    from luthier.core import catalog
    from luthier.knowledge.recall import measure

    kept = np.load(data / "vectors.npz")
    texts, questions = json.loads((data / "texts.json").read_text(encoding="utf-8"))
    entry = catalog.load("indexes", "lancedb")
    index = entry(data / "index", kept["vectors"].shape[1], entry.configure({}))
    out: dict[str, Any] = {"vectors": count, **fill(index, texts, kept["vectors"], count)}
    asked = kept["asked"]
    out["dense"] = timed(lambda n: index.dense(asked[n % len(asked)], 5))
    out["keyword"] = timed(lambda n: index.keyword(questions[n % len(questions)], 5), 50)
    out["peak_mb"] = peak_mb()  # of adding, indexing and answering
    out["recall"] = measure(index, asked[:100], 10).as_dict()
    out["peak_mb_with_exact_search"] = peak_mb()
    out["disk_mb"] = round(sum(each.stat().st_size for each in data.rglob("*") if each.is_file()) / 1e6)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, nargs="+", help="JSON lines with a field text")
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--sentences", type=int, default=4_000, help="that chunks are made of")
    parser.add_argument("--million", action="store_true", help="also 1,000,000 rows")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of --million")
    parser.add_argument("--only-million", action="store_true")
    parser.add_argument("--cache", type=Path, help="keeps the sentences' vectors for the next run")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(million(given.rows, given.child)))
        return 0
    if not given.texts:
        parser.error("--texts is needed")
    import luthier
    from luthier.knowledge.embed import Embedder

    count = 1_500 if given.quick else given.sentences
    listed = sentences(given.texts, count + HELD_OUT)
    engine = luthier.load("minilm-l6")
    embedder = Embedder(engine, given.cache)
    vectors = embedder.embed(listed)
    embedder.close()
    engine.close()
    texts, held = listed[:-HELD_OUT], vectors[-HELD_OUT:]
    questions = listed[-HELD_OUT:][:QUERIES]
    result: dict[str, Any] = {}
    if not given.only_million:
        chunks = 20_000 if given.quick else given.chunks
        result["base"] = hundred_thousand(chunks, texts, vectors[:-HELD_OUT], questions)
        for name, value in result["base"].items():
            print(f"{name:32} {value}")
    if given.million or given.only_million:
        with tempfile.TemporaryDirectory() as folder:
            rng = np.random.default_rng(2)
            pairs = rng.integers(0, HELD_OUT, (2, QUERIES))
            np.savez(Path(folder) / "vectors.npz", vectors=vectors[:-HELD_OUT], asked=between(held, *pairs, rng))
            (Path(folder) / "texts.json").write_text(json.dumps([texts, questions]), encoding="utf-8")
            command = [sys.executable, __file__, "--child", folder, "--rows", str(given.rows)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result["million"] = json.loads(done.stdout.splitlines()[-1])
        for name, value in result["million"].items():
            print(f"{name:32} {value}")
    bars = {}
    if "base" in result:
        bars["p50_under_30_ms"] = result["base"]["hybrid"]["p50_ms"] < MOST_P50_MS
        bars["recall_of_ann"] = result["base"]["recall"]["recall"] >= LEAST_RECALL
    if "million" in result:
        bars["million_within_4_gb"] = result["million"]["peak_mb_with_exact_search"] <= MOST_MB
    print(json.dumps({"benchmark": "vectors", "ratios": {}, "figures": result, "quality": bars}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
