"""Every method of the catalogue on a small decoder and a small encoder, beside PEFT + Trainer: speed, memory, and quality over seeds.

    python benchmarks/methods.py --data FOLDER [--methods lora dora] [--models minilm-l6] [--sets agnews] [--rows 192] [--seeds 3] [--quick]

Every set is a folder of ``train.jsonl`` and ``test.jsonl`` with ``text`` and ``label``. An encoder gets a head; a decoder learns to
answer with the label, loss on the answer only. PEFT trains with the same configuration, rows, epochs, learning rate, schedule and batch
size: as it comes (fp32), and tuned (bf16, rows grouped by length). Each training is a process of its own; its line is added to
``OUT/results.jsonl``, and one that is there already is not made again, so a long run can be stopped and started. ``--peer-seeds`` bounds how
many seeds the slow side gets. Ends with the table in Markdown, the picture, and the result as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _labelled import check_sets
from _methods_cell import PRELOAD, Cell, Place, run
from _methods_report import draw, summary, table

MODELS = {"minilm-l6": "encoder", "smollm2-135m": "decoder"}
SETS = ("agnews", "tweet_emotion")
QUICK = ("lora", "dora", "ia3", "linear_probe")
COMMON = ("lora", "full", "dora", "ia3", "prompt", "prefix", "linear_probe")
"""Those of which Luthier must be twice as fast as PEFT + Trainer as it comes; no method may be slower than it."""


def cells(given: argparse.Namespace) -> Iterator[Cell]:
    """In the order of making: all sides of one training next to each other, seed after seed."""
    from luthier.core import catalog

    for seed in range(given.seeds):
        for dataset in given.sets:
            for model in given.models:
                architecture = MODELS[model]
                for method in given.methods or catalog.names("methods"):
                    if architecture not in catalog.load("methods", method).module.DEFAULTS:
                        continue
                    for side in given.sides:
                        if side != "luthier" and seed >= given.peer_seeds:
                            continue
                        yield Cell(
                            side=side,
                            model=model,
                            dataset=dataset,
                            method=method,
                            seed=seed,
                            rows=given.rows if architecture == "encoder" else given.decoder_rows,
                            test=given.test,
                            epochs=given.epochs,
                            batch_size=given.batch_size,
                            cores=given.cores,
                        )


def made(path: Path) -> list[dict[str, Any]]:
    """The lines that are there, without a last one that was cut off."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            print(f"{path}: a line is cut off and will be made again", file=sys.stderr)
    return found


def measure(wanted: list[Cell], given: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of the wanted cells: those that are there, and those that are made now."""
    path = given.out / "results.jsonl"
    lines = {key(line): line for line in made(path) if "error" not in line}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    place = Place(given.data, given.out / "home", given.limit_s, tuple(given.sets))
    began = time.perf_counter()
    for number, cell in enumerate(wanted, 1):
        known = key(asdict(cell))
        if known in lines:
            continue
        if given.hours and time.perf_counter() - began > given.hours * 3600:
            print(f"--hours is over; {len(wanted) - number + 1} trainings are left for another run", file=sys.stderr)
            break
        line = one(context, cell, place)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        lines[known] = line
        print(f"{number}/{len(wanted)} {told(line)}", file=sys.stderr, flush=True)
    return [lines[known] for cell in wanted if (known := key(asdict(cell))) in lines]


def one(context: Any, cell: Cell, place: Place) -> dict[str, Any]:
    """One training in a process of its own, ended when it takes far too long."""
    results = context.Queue()
    process = context.Process(target=run, args=(cell, place, results))
    process.start()
    end = time.monotonic() + 3 * place.limit_s + 60
    while time.monotonic() < end:
        try:
            found: dict[str, Any] = results.get(timeout=1.0)
        except queue.Empty:
            if not process.is_alive() and results.empty():
                break
        else:
            process.join()
            return found
    alive = process.is_alive()
    process.kill()
    process.join()
    reason = "took more than three times --limit-s" if alive else f"its process ended with {process.exitcode}"
    return {**asdict(cell), ("skipped" if alive else "error"): reason}


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    """What a line is of."""
    return tuple(line.get(name) for name in Cell.__dataclass_fields__)


def told(line: dict[str, Any]) -> str:
    """A line for people."""
    name = f"{line['model']} {line['dataset']} {line['method']} {line['side']} seed {line['seed']}"
    if "tokens_per_s" not in line:
        return f"{name}: {line.get('skipped') or line.get('error')}"
    quality = "cut short" if line["macro_f1"] is None else f"F1 {line['macro_f1']:.3f}"
    return f"{name}: {line['trainable']:,} trained, {line['tokens_per_s']:,.0f} tokens/s, {line['peak_mb']:,.0f} MB, {quality}"


def bars(found: Iterable[dict[str, Any]]) -> list[str]:
    """Whether every method is as fast as the peer, and the common ones twice as fast."""
    out = []
    for row in found:
        for side, least in (("peer", 2.0 if row["method"] in COMMON else 1.0), ("tuned", 1.0)):
            ratio = row["sides"].get(side, {}).get("ratio")
            if ratio is not None and ratio < least:
                out.append(f"{row['model']} {row['method']}: {ratio:.2f} times {side}, below {least:g}")
    return out


def command_line() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="a folder with a folder for each set")
    parser.add_argument("--methods", nargs="+", help="default: all of the catalogue")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument(
        "--sides", nargs="+", default=["luthier", "peer", "tuned"], choices=["luthier", "peer", "tuned"]
    )
    parser.add_argument("--rows", type=int, default=384, help="training rows of the encoder")
    parser.add_argument("--decoder-rows", type=int, default=128, help="training rows of the decoder, which is slower")
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer-seeds", type=int, default=1)
    parser.add_argument("--cores", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument(
        "--limit-s",
        type=float,
        default=180,
        help="a training is cut short after this; its speed counts, its quality not",
    )
    parser.add_argument(
        "--processor-time", action="store_true", help="ratios of processor time, for a machine that is not idle"
    )
    parser.add_argument("--hours", type=float, help="begin no training after this")
    parser.add_argument("--out", type=Path, default=Path("methods-results"))
    parser.add_argument("--picture", type=Path, help="default: OUT/methods.png")
    parser.add_argument("--report", action="store_true", help="train nothing: report on all that OUT holds")
    parser.add_argument(
        "--quick", action="store_true", help=f"{', '.join(QUICK)} on one set, one seed: under five minutes on two cores"
    )
    return parser


def main() -> None:
    """Read the command line, measure what is missing, report."""
    parser = command_line()
    given = parser.parse_args()
    if given.report:
        report(made(given.out / "results.jsonl"), given)
        return
    if given.data is None:
        parser.error("--data is needed")
    if given.quick:
        given.methods, given.sets, given.seeds = given.methods or list(QUICK), given.sets[:1], 1
        given.rows, given.decoder_rows, given.test, given.epochs, given.limit_s = 128, 32, 100, 1, 45
    check_sets(parser, given.data, given.sets)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(given.cores)
    os.environ["LUTHIER_HOME"] = str((given.out / "home").resolve())
    pull(given)
    report(measure(list(cells(given)), given), given)


def report(lines: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """The picture, a table a model, the bars, the failures, and everything as one line of JSON."""
    found = summary(lines, "tokens_per_cpu_s" if given.processor_time else "tokens_per_s")
    draw(found, given.picture or given.out / "methods.png")
    for model in dict.fromkeys(row["model"] for row in found):
        print(f"\n{model}\n\n{table(found, model)}")
    missed = bars(found)
    print("\n" + ("\n".join(["NOT met:", *missed]) if missed else "All bars met."))
    for line in lines:
        if "error" in line:
            print(told(line))
    print(json.dumps(result(found, missed)))


def pull(given: argparse.Namespace) -> None:
    """The base models in the benchmark's own store."""
    from luthier.core.errors import NotFoundError
    from luthier.models.pull import pull as pull_model
    from luthier.store.database import open_store
    from luthier.store.models import find

    given.out.mkdir(parents=True, exist_ok=True)
    store = open_store(given.out / "home")
    for model in given.models:
        try:
            find(store, model)
        except NotFoundError:
            pull_model(model, store=store)


def result(found: list[dict[str, Any]], missed: list[str]) -> dict[str, Any]:
    """The benchmark's line of JSON."""
    ratios = {
        f"{row['model']} {row['method']} over_{side}": round(own["ratio"], 2)
        for row in found
        for side, own in row["sides"].items()
        if own.get("ratio") is not None
    }
    over = [ratio for name, ratio in ratios.items() if name.endswith("over_peer")]
    tuned = [ratio for name, ratio in ratios.items() if name.endswith("over_tuned")]
    medians = {"median_over_peer": over, "median_over_tuned": tuned}
    ratios = {name: round(statistics.median(listed), 2) for name, listed in medians.items() if listed} | ratios
    quality = {
        f"{row['model']} {row['method']}": {s: own.get("quality") for s, own in row["sides"].items()} for row in found
    }
    figures = {
        f"{row['model']} {row['method']} {side}": {k: own[k] for k in ("tokens_per_s", "peak_mb", "over_base_mb")}
        | {"trainable": own["trainable"]}
        for row in found
        for side, own in row["sides"].items()
    }
    return {"benchmark": "methods", "ratios": ratios, "figures": figures, "quality": quality, "bars_missed": missed}


if __name__ == "__main__":
    main()
