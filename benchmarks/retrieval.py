"""How well do questions find their paragraph, and how fast is a folder indexed? Luthier beside LangChain and LlamaIndex as they come.

    python benchmarks/retrieval.py --data FOLDER --peer-python PEER/bin/python [--sets squad cmrc_zh] [--reranker NAME | --train-reranker] [--quick]

A set is a folder with ``corpus.jsonl`` (id, title, text), ``test.jsonl`` and ``train.jsonl`` (question, answers, context_id). The corpus is written as
one text file a paragraph; every side parses, cuts, embeds (the same MiniLM weights) and indexes them with its own defaults, in a process of
its own, in turn, ``--repeats`` times. A chunk is right when it is of the question's paragraph and its text holds an answer. Seconds of
ingestion are from files to a finished index, models loaded before; processor time stands beside them, which other work on the machine
lengthens less. ``--train-reranker`` first tunes a cross-encoder on the training questions of the sets (objective ``rank``, hard negatives
from our own hybrid search). ``--quick`` asks 200 questions of the first set. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _retrieval_work import threads, write_corpus

PEERS = ("langchain", "llamaindex")
SHOWN = ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10", "query_p50_ms")
FASTER = 4.0
"""How many times as fast as either peer ingestion must be."""
HERE = Path(__file__).parent


def measure(side: str, dataset: Path, work: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One side on one set, in a process of its own."""
    out = work / f"{side}.json"
    out.unlink(missing_ok=True)
    told = [str(dataset), "test", str(200 if given.quick else 0), str(given.cores)]
    if side == "luthier":
        command = [
            sys.executable,
            str(HERE / "_retrieval_luthier.py"),
            str(work / "corpus"),
            *told,
            given.reranker or "",
        ]
    else:
        command = [
            given.peer_python,
            str(HERE / "_retrieval_peer.py"),
            side,
            str(work / "corpus"),
            given.weights,
            *told,
        ]
    environment = threads(given.cores)
    if side != "luthier":
        environment.pop("PYTHONPATH", None)
    done = subprocess.run([*command, str(out)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} on {dataset.name} failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    print(
        f"{dataset.name} {side:10} {found['chunks']} chunks, {found['ingest_s']:.1f} s ({found['ingest_cpu_s']:.1f} s of processors)",
        file=sys.stderr,
        flush=True,
    )
    return found


def compare(dataset: Path, given: argparse.Namespace) -> dict[str, Any]:
    """All sides in turn; medians of the times, the pipelines of the last round."""
    sides = ["luthier", *(PEERS if given.peer_python else ())]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(dataset, Path(folder) / "corpus")
        for _ in range(given.repeats):
            for side in sides:
                runs[side].append(measure(side, dataset, Path(folder), given))
    figures = {}
    for side, each in runs.items():
        figures[side] = each[-1] | {
            name: round(statistics.median(run[name] for run in each), 3) for name in ("ingest_s", "ingest_cpu_s")
        }
    return figures


def ratios_of(figures: dict[str, Any]) -> dict[str, float]:
    """Ingestion of each peer in times of ours, and our best recall@5 less the best of theirs."""
    own, out = figures["luthier"], {}
    for side in figures.keys() - {"luthier"}:
        for name in ("ingest_s", "ingest_cpu_s"):
            out[f"{name}_{side}"] = round(figures[side][name] / own[name], 2)
    theirs = [each["recall@5"] for side in figures.keys() - {"luthier"} for each in figures[side]["pipelines"].values()]
    if theirs:
        ours = own["pipelines"].get("hybrid_rerank", own["pipelines"]["hybrid"])
        out["recall@5_above_best_peer"] = round(ours["recall@5"] - max(theirs), 4)
    return out


def show(name: str, figures: dict[str, Any], ratios: dict[str, float]) -> None:
    """The table in Markdown."""
    print(f"\n| {name} | {' | '.join(SHOWN)} |\n|{'---|' * (1 + len(SHOWN))}")
    for side, each in figures.items():
        for pipeline, values in each["pipelines"].items():
            cells = [f"{values[shown]:.1f}" if shown.endswith("_ms") else f"{values[shown]:.3f}" for shown in SHOWN]
            print(f"| {side} {pipeline} | {' | '.join(cells)} |")
    for side, each in figures.items():
        print(
            f"{side}: {each['chunks']} chunks, ingested in {each['ingest_s']:.1f} s ({each['ingest_cpu_s']:.1f} s of processors)"
        )
    print(ratios, flush=True)


def bars(ratios: dict[str, dict[str, float]]) -> list[str]:
    """What does not reach the bar."""
    out = []
    for name, found in ratios.items():
        if found.get("recall@5_above_best_peer", 0.0) < 0:
            out.append(f"{name}: recall@5 is {-found['recall@5_above_best_peer']:.3f} below the best of the peers")
        for key, value in found.items():
            if key.startswith("ingest_s_") and value < FASTER:
                out.append(
                    f"{name}: ingestion is {value:.1f} times as fast as {key.removeprefix('ingest_s_')}, below {FASTER:g}"
                )
    return out


def command_line() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with a folder for each set")
    parser.add_argument("--sets", nargs="+", default=["squad", "cmrc_zh"])
    parser.add_argument("--peer-python", help="the Python of an environment with the peers; left out, Luthier alone")
    parser.add_argument("--reranker", help="a model that objective rank tuned")
    parser.add_argument("--train-reranker", action="store_true", help="tune one on the training questions first")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="200 questions of the first set")
    return parser


def main() -> None:
    """Read the command line, measure, report."""
    from luthier.models.pull import pull
    from luthier.store.artifacts import path_of
    from luthier.store.database import open_store

    given = command_line().parse_args()
    if given.quick:
        given.sets = given.sets[:1]
    store = open_store()
    given.weights = str(path_of(store, pull("minilm-l6", store=store).digest))
    if given.train_reranker:
        from _retrieval_reranker import train

        given.reranker = train([given.data / name for name in given.sets], given.cores)
    figures = {name: compare(given.data / name, given) for name in given.sets}
    ratios = {name: ratios_of(each) for name, each in figures.items()}
    for name, each in figures.items():
        show(name, each, ratios[name])
    for line in bars(ratios):
        print(f"below the bar: {line}")
    quality = {
        f"{name} {side} {pipeline}": values["recall@5"]
        for name, each in figures.items()
        for side, run in each.items()
        for pipeline, values in run["pipelines"].items()
    }
    print(json.dumps({"benchmark": "retrieval", "ratios": ratios, "figures": figures, "quality": quality}))


if __name__ == "__main__":
    main()
