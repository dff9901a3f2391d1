"""How fast is LoRA fine-tuning, at the same loss? TRL as it comes, TRL tuned, and Luthier, in turn, each as a process of its own.

    python benchmarks/train.py [--quick] [--data rows.jsonl] [--rows 256] [--repeats 3]

All three train a rank-8 LoRA on every linear layer of smollm2-135m, one epoch over the same instruction rows, loss on the answers
only, with the same batch size, learning rate, schedule and clipping. Tokens/s counts real tokens (no padding) over the whole of
training, without loading and tokenising. Each result is judged by one evaluator in fp32 on the same held-out rows. ``--data`` is any
file that ``luthier data inspect`` reads as chats or questions (default: the sample task's questions). The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

QUESTIONS = Path(__file__).parent.parent / "examples" / "support" / "questions.jsonl"
WAYS = ("TRL defaults", "TRL tuned", "Luthier")
BARS = {"over_trl_defaults": 4.0, "over_trl_tuned": 2.0}
LOSS_WITHIN = 0.02
MODEL = "smollm2-135m"
RANK, ALPHA, BATCH, RATE = 8, 16, 8, 5e-4


def conversations(path: Path, count: int, held_out: int) -> tuple[list[Any], list[Any]]:
    """The first ``count`` rows to train on and the ``held_out`` rows after them, as conversations that end with an answer."""
    from luthier.core.message import Message
    from luthier.data.read import read

    data = read(path)
    if data.kind == "question":
        rows = [(*e.messages, Message("assistant", e.target)) for e in data.examples if e.target]
    elif data.kind == "chat":
        rows = [e.messages for e in data.examples if e.messages[-1].role == "assistant"]
    else:
        sys.exit(f"{path} holds {data.kind} data; chats or questions are needed")
    if len(rows) <= held_out:
        sys.exit(f"{path} holds {len(rows)} rows; more than {held_out} are needed")
    count = min(count, len(rows) - held_out)
    return rows[:count], rows[count : count + held_out]


# ---- one way, in its own process


def model_folder() -> Path:
    """The base model in Hugging Face layout, pulled when it is not there."""
    from luthier.models.pull import pull
    from luthier.store.artifacts import path_of
    from luthier.store.database import open_store

    store = open_store()
    return path_of(store, pull(MODEL, store=store).digest)


def train_trl(train: Sequence[Any], folder: Path, *, tuned: bool) -> float:
    """TRL's ``SFTTrainer``; returns the seconds of training. The adapter goes to ``folder``."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"prompt": [m.as_dict() for m in messages[:-1]], "completion": [messages[-1].as_dict()]} for messages in train
    ]
    same = {
        "output_dir": str(folder / "trainer"),
        "per_device_train_batch_size": BATCH,
        "learning_rate": RATE,
        "num_train_epochs": 1,
        "max_length": None,
        "use_cpu": True,
        "seed": 0,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    if tuned:
        same |= {
            "model_init_kwargs": {"dtype": "bfloat16"},
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
        }
    trainer = SFTTrainer(
        str(model_folder()),
        args=SFTConfig(**same),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(str(model_folder())),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    trainer.model.save_pretrained(str(folder / "adapter"))
    return seconds


def train_luthier(train: Sequence[Any], folder: Path) -> float:
    """``luthier.tune`` as a user calls it; returns the seconds that its loop took."""
    from luthier.core.dataset import Dataset, Example, Splits
    from luthier.store.artifacts import path_of
    from luthier.store.database import open_store
    from luthier.training.tune import tune

    store = open_store()
    rows = Dataset("benchmark", "chat", tuple(Example(str(i), messages) for i, messages in enumerate(train)))
    nothing = Dataset("nothing", "chat", ())
    config = {
        "name": "benchmark-train",
        "model": MODEL,
        "method": {"name": "lora", "rank": RANK, "alpha": ALPHA},
        "train": {
            "epochs": 1,
            "batch_size": BATCH,
            "learning_rate": RATE,
            "schedule": "linear",
            "warmup": 0,
            "device": "cpu",
        },
    }
    seconds: list[float] = []
    result = tune(
        config,
        splits=Splits(rows, nothing, nothing),
        store=store,
        metrics=lambda record: seconds.append(record["elapsed_s"]),
        resume=False,
        replace=True,
    )
    (folder / "adapter").symlink_to(path_of(store, result.model.digest))
    return seconds[-1]


def evaluate(adapter: Path, held_out: Sequence[Any]) -> float:
    """Mean loss of the answers' tokens in fp32, one plain forward a row, adapter loaded by PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from luthier.data.render import Renderer

    base = AutoModelForCausalLM.from_pretrained(str(model_folder()), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    renderer = Renderer(AutoTokenizer.from_pretrained(str(model_folder())))
    total, count = 0.0, 0
    with torch.inference_mode():
        for messages in held_out:
            rendered = renderer.training_ids(messages)
            log_probs = model(input_ids=torch.tensor([rendered.ids])).logits[0].log_softmax(-1)
            places = [i for i, said in enumerate(rendered.mask) if said and i]
            total -= sum(float(log_probs[i - 1, rendered.ids[i]]) for i in places)
            count += len(places)
    return total / count


def worker(arguments: argparse.Namespace) -> None:
    """Train one way, judge it, write the figures."""
    import resource

    import torch

    from luthier.data.render import Renderer
    from luthier.models.load import load_tokenizer

    torch.set_num_threads(arguments.cores)
    train, held_out = conversations(arguments.data, arguments.rows, arguments.held_out)
    renderer = Renderer(load_tokenizer(model_folder()))
    tokens = sum(len(row.ids) for row in renderer.training_ids_batch(train))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.worker == "Luthier":
            seconds = train_luthier(train, Path(folder))
        else:
            seconds = train_trl(train, Path(folder), tuned=arguments.worker == "TRL tuned")
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        loss = evaluate(Path(folder) / "adapter", held_out)
    figures = {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds, "peak_mb": peak_mb, "loss": loss}
    arguments.out.write_text(json.dumps(figures), encoding="utf-8")


# ---- all ways, in turn


def measure(way: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one way as a process and read its figures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, __file__, "--worker", way, "--out", str(out)]
        for name in ("data", "rows", "held_out", "cores"):
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        threads = {name: str(arguments.cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{way} failed:\n{done.stderr[-4000:]}")
        found: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
        return found


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every way ``repeats`` times, in turn; medians."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for repeat in range(arguments.repeats):
        for way in WAYS:
            runs[way].append(found := measure(way, arguments))
            print(f"{repeat + 1}/{arguments.repeats} {way:13} {found['tokens_per_s']:7.0f} tokens/s", flush=True)
    figures = {
        way: {name: statistics.median(run[name] for run in listed) for name in listed[0]}
        for way, listed in runs.items()
    }
    fastest = figures["Luthier"]["tokens_per_s"]
    losses = {way: found["loss"] for way, found in figures.items()}
    worst = max(losses["Luthier"] / losses[way] - 1 for way in WAYS[:2])
    return {
        "benchmark": "train",
        "ratios": {
            "over_trl_defaults": round(fastest / figures["TRL defaults"]["tokens_per_s"], 2),
            "over_trl_tuned": round(fastest / figures["TRL tuned"]["tokens_per_s"], 2),
        },
        "figures": {way: {k: round(v, 4) for k, v in found.items()} for way, found in figures.items()},
        "quality": {"loss_above_trl": round(worst, 4), "allowed": LOSS_WITHIN, "same_loss": worst <= LOSS_WITHIN},
    }


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """The table, the bars, and the line of JSON."""
    rows = result["figures"]["Luthier"]["tokens"]
    print(f"\nLoRA r={RANK} on {MODEL}, {rows:,.0f} tokens, {arguments.cores} cores, median of {arguments.repeats}")
    print(f"{'':14} {'tokens/s':>9} {'ratio':>7} {'peak MB':>9} {'held-out loss':>14}")
    fastest = result["figures"]["Luthier"]["tokens_per_s"]
    for way, found in result["figures"].items():
        ratio = fastest / found["tokens_per_s"]
        print(f"{way:14} {found['tokens_per_s']:9.0f} {ratio:6.2f}x {found['peak_mb']:9.0f} {found['loss']:14.4f}")
    for name, bar in BARS.items():
        met = "met" if result["ratios"][name] >= bar else "NOT met"
        print(f"{name}: {result['ratios'][name]} (bar {bar:g}, {met})")
    print(json.dumps(result))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=QUESTIONS)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="48 rows, once: under five minutes on two cores")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    if arguments.quick:
        arguments.rows, arguments.held_out, arguments.repeats = min(arguments.rows, 48), 20, 1
    show(compare(arguments), arguments)


if __name__ == "__main__":
    main()
