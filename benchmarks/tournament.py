"""What does it save to let entrants compete in one tournament, instead of tuning and evaluating them one by one?

    python benchmarks/tournament.py [--quick] [--task examples/support/task.yaml] [--cores 2]

Eight entrants on the sample task, twice: as ``luthier tournament``, and as the commands that a user would type without it, ``luthier tune``
(for those that are trained) and ``luthier eval``, each a process of its own in the same empty home, that finds what earlier ones
left on the disk. Both ways must give the same scores. The base models are there before the clock starts. The last line is the result as JSON; ``figures`` says where the time went.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent
TASK = ROOT / "examples" / "support" / "task.yaml"
BAR = 2.0
ROUNDING = 0.01
DECODER, ENCODER = "smollm2-135m", "minilm-l6"
LUTHIER = str(Path(sys.executable).with_name("luthier"))

# Two ways to ask the decoder, and six ways to train the encoder: what a team that wants the cheapest good classifier would line up.
ENTRANTS: tuple[Mapping[str, Any], ...] = (
    {"name": "zero-shot", "model": DECODER, "strategy": "zero_shot"},
    {"name": "few-shot", "model": DECODER, "strategy": {"name": "few_shot", "shots": 10}},
    {"name": "probe", "model": ENCODER, "method": "linear_probe"},
    {"name": "probe-slow", "model": ENCODER, "method": "linear_probe", "train": {"learning_rate": 0.003}},
    {"name": "probe-smooth", "model": ENCODER, "method": "linear_probe", "objective": {"name": "classify", "label_smoothing": 0.1}},
    {"name": "lora-4", "model": ENCODER, "method": {"name": "lora", "rank": 4}, "train": {"epochs": 1}},
    {"name": "lora-16", "model": ENCODER, "method": {"name": "lora", "rank": 16}, "train": {"epochs": 1}},
    {"name": "full", "model": ENCODER, "method": "full", "train": {"epochs": 1}},
)  # fmt: skip


@dataclass(frozen=True)
class Took:
    """Seconds on the clock, and of all processors together (which other work on the machine does not lengthen)."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Took) -> Took:
        return Took(self.wall + other.wall, self.cpu + other.cpu)


def command(arguments: Sequence[str], home: Path, cores: int) -> tuple[Took, str]:
    """Type a luthier command; returns what it took and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    threads = {name: str(cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    began = time.perf_counter()
    done = subprocess.run(
        [LUTHIER, *arguments],
        env={**os.environ, **threads, "LUTHIER_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = Took(time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    if done.returncode:
        sys.exit(f"luthier {' '.join(arguments)} failed:\n{done.stderr[-4000:]}")
    return took, done.stdout


def prepare(folder: Path, task: Path, rows: int | None) -> tuple[Path, Path]:
    """A home with the two bases in it, and the task file with its data cut into files (``tune`` reads files, not splits)."""
    from luthier.data.read import write
    from luthier.models.pull import pull
    from luthier.store.database import open_store
    from luthier.tasks.own import read_task

    home = folder / "home"
    store = open_store(home)
    for name in (DECODER, ENCODER):
        pull(name, store=store)
    store.engine.dispose()
    given = yaml.safe_load(task.read_text(encoding="utf-8"))
    given["data"]["path"] = str((task.parent / given["data"]["path"]).resolve())
    if rows is not None:
        given["data"]["limit"] = rows
    built = read_task(given)
    for part in ("train", "validation", "test"):
        write(getattr(built.splits, part), folder / f"{part}.jsonl")
    files = {part: str(folder / f"{part}.jsonl") for part in ("train", "validation", "test")}
    made = folder / "task.yaml"
    made.write_text(yaml.safe_dump({**given, "data": files, "entrants": [dict(e) for e in ENTRANTS]}), encoding="utf-8")
    return home, made


def one_by_one(home: Path, task: Path, cores: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Tune and evaluate every entrant with commands of their own."""
    given = yaml.safe_load(task.read_text(encoding="utf-8"))
    lines, found = [], {}
    for entrant in ENTRANTS:
        name, model = str(entrant["name"]), str(entrant["model"])
        tuned, trained = Took(), {}
        if "method" in entrant:
            run = {"name": name, "model": model, "data": {k: given["data"][k] for k in ("train", "validation")}}
            run |= {key: entrant[key] for key in ("method", "objective", "train") if key in entrant}
            config = task.parent / f"{name}.yaml"
            config.write_text(yaml.safe_dump(run), encoding="utf-8")
            tuned, said = command(["tune", str(config), "--json"], home, cores)
            trained, model = json.loads(said), name
        arguments = ["eval", model, str(task), "--json"]
        if "strategy" in entrant:
            strategy = entrant["strategy"]
            strategy = strategy if isinstance(strategy, dict) else {"name": strategy}
            arguments += ["--strategy", strategy["name"]]
            arguments += [
                part for key, value in strategy.items() if key != "name" for part in ("--option", f"{key}={value}")
            ]
        asked, said = command(arguments, home, cores)
        found[name] = json.loads(said)
        lines.append(
            {
                "entrant": name,
                "tune_s": tuned.wall,
                "eval_s": asked.wall,
                "cpu_s": tuned.cpu + asked.cpu,
                "steps_s": trained.get("elapsed_s", 0.0),
                "answers_s": found[name]["seconds"],
            }
        )
        print(
            f"  {name:14} tune {tuned.wall:6.1f} s   eval {asked.wall:6.1f} s   cpu {tuned.cpu + asked.cpu:6.1f} s",
            flush=True,
        )
    return lines, found


def compare(board: Mapping[str, Any], alone: Mapping[str, Any]) -> dict[str, Any]:
    """Whether both ways gave the same scores.

    Those of trained entrants must be equal to the last digit. Two prompts that begin alike are asked of one engine in a tournament,
    which reads the beginning once; in bf16 that rounds otherwise, and an answer between two nearly equal labels can change.
    """
    together = {s["name"]: s["score"]["value"] for s in board["standings"] if s["status"] == "done"}
    primary = board["task"]["primary"]
    trained = [e["name"] for e in ENTRANTS if "method" in e]
    gaps = {name: abs(together[name] - result["scores"][primary]["value"]) for name, result in alone.items()}
    largest = [max(gap for name, gap in gaps.items() if (name in trained) == wanted) for wanted in (True, False)]
    return {
        "entrants": len(together),
        "largest_gap_trained": largest[0],
        "largest_gap_prompted": round(largest[1], 4),
        "allowed_prompted": ROUNDING,
        "same_scores": largest[0] == 0.0 and largest[1] <= ROUNDING,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways, in turn, each in a fresh copy of the same home."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        home, task = prepare(folder, arguments.task, 460 if arguments.quick else None)
        shutil.copytree(home, folder / "alone")
        print(f"one by one ({len(ENTRANTS)} entrants)", flush=True)
        began = time.perf_counter()
        lines, alone = one_by_one(folder / "alone", task, arguments.cores)
        apart_s = time.perf_counter() - began
        print(f"  {apart_s:.1f} s\none tournament", flush=True)
        together, said = command(["tournament", str(task), "--json"], home, arguments.cores)
        print(f"  {together.wall:.1f} s, cpu {together.cpu:.1f} s", flush=True)
        board = json.loads(said)
    apart_cpu = sum(line["cpu_s"] for line in lines)
    commands = sum(1 for line in lines for key in ("tune_s", "eval_s") if line[key])
    work = sum(line["steps_s"] + line["answers_s"] for line in lines)
    return {
        "benchmark": "tournament",
        "ratios": {
            "over_one_by_one": round(apart_s / together.wall, 2),
            "over_one_by_one_cpu": round(apart_cpu / together.cpu, 2),
        },
        "figures": {
            "one_by_one_s": round(apart_s, 1),
            "tournament_s": round(together.wall, 1),
            "one_by_one_cpu_s": round(apart_cpu, 1),
            "tournament_cpu_s": round(together.cpu, 1),
            "commands": commands,
            "training_steps_s": round(sum(line["steps_s"] for line in lines), 1),
            "answering_s": round(sum(line["answers_s"] for line in lines), 1),
            "around_it_one_by_one_s": round(apart_s - work, 1),
            "per_entrant": [{k: round(v, 2) if isinstance(v, float) else v for k, v in x.items()} for x in lines],
        },
        "quality": compare(board, alone),
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--task", type=Path, default=TASK)
    parser.add_argument("--cores", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="half of the rows: under five minutes on two cores")
    arguments = parser.parse_args()
    result = measure(arguments)
    figures = result["figures"]
    print(
        f"\n{figures['one_by_one_s']} s in {figures['commands']} commands, {figures['tournament_s']} s as a tournament; training steps "
        f"{figures['training_steps_s']} s, answering {figures['answering_s']} s"
    )
    met = "met" if result["ratios"]["over_one_by_one"] >= BAR else "NOT met"
    print(f"over_one_by_one: {result['ratios']['over_one_by_one']} (bar {BAR:g}, {met})")
    print(f"the same in processor time: {result['ratios']['over_one_by_one_cpu']}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
