"""How wrong is the preflight? Short real trainings, each in a process of its own, with what was predicted beside what they took.

    python benchmarks/preflight.py [--quick] [--data rows.jsonl] [--only sft] [--cores 0] [--steps 8]

Every cell begins with a store of its own that has seen no training, so that nothing but shapes and a short calibration is known, and is then
trained once more with another seed, when one earlier run corrects the prediction. The rows are those of the sample task and what is
made of them; ``--data`` gives the instruction rows (sft, dpo, lora, full) another file of questions or chats. Memory does not mind
other work on the machine; time does, so that its errors are read on an idle one. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SUPPORT = Path(__file__).parent.parent / "examples" / "support"
DECODER, ENCODER = "smollm2-135m", "minilm-l6"
BARS = {"memory": 0.15, "time": 0.30}

CELLS: dict[str, dict[str, Any]] = {
    "sft lora": {"model": DECODER, "data": "chats", "method": "lora", "objective": "sft"},
    "sft full": {"model": DECODER, "data": "chats", "method": "full", "objective": "sft"},
    "sft ladder_side": {"model": DECODER, "data": "chats", "method": "ladder_side", "objective": "sft"},
    "dpo lora": {"model": DECODER, "data": "preferences", "method": "lora", "objective": "dpo"},
    "causal_lm lora": {"model": DECODER, "data": "texts", "method": "lora", "objective": "causal_lm"},
    "causal_lm full": {"model": DECODER, "data": "texts", "method": "full", "objective": "causal_lm"},
    "classify lora, decoder": {"model": DECODER, "data": "labels", "method": "lora", "objective": "classify"},
    "classify lora": {"model": ENCODER, "data": "labels", "method": "lora", "objective": "classify"},
    "classify full": {"model": ENCODER, "data": "labels", "method": "full", "objective": "classify"},
    "masked_lm full": {"model": ENCODER, "data": "texts", "method": "full", "objective": "masked_lm"},
    "similarity full": {"model": ENCODER, "data": "pairs", "method": "full", "objective": "similarity"},
    "distill_layers full": {
        "model": ENCODER,
        "data": "texts",
        "method": "full",
        "objective": {"name": "distill_layers", "teacher": ENCODER},
    },
}
QUICK = ("sft lora", "classify lora", "masked_lm full")


def write_rows(folder: Path, given: Path | None) -> None:
    """The files of all cells: chats, preferences, labels, texts, pairs."""
    from luthier.core.message import Message
    from luthier.data.read import read

    data = read(given or SUPPORT / "questions.jsonl")
    talks = []
    for example in data.examples:
        turns = (
            example.messages if data.kind == "chat" else (*example.messages, Message("assistant", example.target or ""))
        )
        if turns[-1].role == "assistant" and turns[-1].content.strip():
            talks.append(turns)
    tickets = read(SUPPORT / "tickets.jsonl").examples
    answers = [turns[-1].content for turns in talks]
    pages = [page.read_text(encoding="utf-8") for page in sorted((SUPPORT / "handbook").rglob("*.md"))]
    others = answers[1:] + answers[:1]
    files: dict[str, list[dict[str, Any]]] = {
        "chats": [{"messages": [m.as_dict() for m in turns]} for turns in talks],
        "preferences": [
            {"prompt": turns[-2].content, "chosen": mine, "rejected": other}
            for turns, mine, other in zip(talks, answers, others, strict=True)
            if mine != other
        ],
        "labels": [{"text": each.text, "label": each.target} for each in tickets],
        "texts": [{"text": text} for text in (*pages, *(each.text for each in tickets), *answers)],
        "pairs": [
            {"anchor": turns[-2].content, "positive": answer} for turns, answer in zip(talks, answers, strict=True)
        ],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def new_home(folder: Path) -> None:
    """A store with the two models in it and nothing else."""
    from luthier.models.pull import pull
    from luthier.store.artifacts import path_of, put, staged
    from luthier.store.database import open_store
    from luthier.store.models import register

    own, fresh = open_store(), open_store(folder)
    for name in (DECODER, ENCODER):
        record = pull(name, store=own)
        with staged(fresh) as inside:
            shutil.copytree(path_of(own, record.digest), inside, dirs_exist_ok=True)
            put(fresh, inside)
        register(fresh, record)


# ---- one training, in its own process


def train(cell: Mapping[str, Any], rows: Path, steps: int, seed: int) -> None:
    """Train, and print what was predicted and taken."""
    from luthier.training.tune import tune

    config = {
        "name": f"seed-{seed}",
        "model": cell["model"],
        "data": {"train": str(rows / f"{cell['data']}.jsonl"), "overlong": "truncate"},
        "method": cell["method"],
        "objective": cell["objective"],
        "train": {"max_steps": steps, "seed": seed, "checkpoint_every": 10_000, "max_tokens_per_batch": 1024},
    }
    if cell["objective"] in ("causal_lm", "masked_lm"):
        config["objective"] = {"name": cell["objective"], "length": 256}
    seen: list[Any] = []
    done = tune(config, started=seen.append).summary
    print(json.dumps({**done["predicted"], "took": done["peak_mb"], "parts": dict(seen[0].predicted.parts)}))


# ---- all of them


def measure(name: str, rows: Path, steps: int, cores: str | None) -> list[dict[str, Any]]:
    """Both trainings of a cell: without and with an earlier one."""
    with tempfile.TemporaryDirectory() as home:
        new_home(Path(home))
        found = []
        for seed in (0, 1):
            command = [
                sys.executable,
                __file__,
                "--cell",
                name,
                "--rows",
                str(rows),
                "--steps",
                str(steps),
                "--seed",
                str(seed),
            ]
            if cores is not None:
                command = ["taskset", "-c", cores, *command]
            run = subprocess.run(
                command, check=False, capture_output=True, text=True, env={**os.environ, "LUTHIER_HOME": home}
            )
            if run.returncode:
                sys.exit(f"{name}: {run.stderr[-2000:]}")
            found.append(json.loads(run.stdout.strip().splitlines()[-1]))
        return found


def main() -> None:
    """Measure the cells and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three cells of few steps")
    parser.add_argument("--data", type=Path, help="instruction rows: questions or chats")
    parser.add_argument("--only", help="cells whose name holds this")
    parser.add_argument("--steps", type=int, help="optimizer steps of a training (default 8, quick 4)")
    parser.add_argument("--cores", help="processor cores to run on, as taskset takes them")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    steps = given.steps or (4 if given.quick else 8)
    if given.cell:
        train(CELLS[given.cell], given.rows, steps, given.seed)
        return
    names = [name for name in (QUICK if given.quick else CELLS) if not given.only or given.only in name]
    figures: dict[str, Any] = {}
    print(
        f"{'training':24} {'first':>5} {'predicted':>10} {'took':>9} {'error':>6}   {'predicted':>9} {'took':>8} {'error':>6}"
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder)
        write_rows(rows, given.data)
        for name in names:
            figures[name] = measure(name, rows, steps, given.cores)
            for which, one in zip(("yes", "no"), figures[name], strict=True):
                print(
                    f"{name:24} {which:>5} {one['peak_mb']:7,.0f} MB {one['took']:6,.0f} MB {one['memory_error']:6.0%}   "
                    f"{one['train_s']:7.1f} s {one['seconds']:6.1f} s {one['time_error']:6.0%}",
                    flush=True,
                )
    first, later = ([runs[at] for runs in figures.values()] for at in (0, 1))
    ratios = {
        f"{what}_{when}_within_bar": round(sum(one[f"{what}_error"] <= bar for one in runs) / len(runs), 3)
        for what, bar in BARS.items()
        for when, runs in (("first", first), ("later", later))
    }
    quality = {
        f"median_{what}_error_{when}": round(statistics.median(one[f"{what}_error"] for one in runs), 4)
        for what in BARS
        for when, runs in (("first", first), ("later", later))
    }
    print(json.dumps({"benchmark": "preflight", "ratios": ratios, "figures": figures, "quality": quality}))


if __name__ == "__main__":
    main()
