"""How fast is training, at the same loss? The peer as it comes, the peer tuned, and Luthier, in turn, each as a process of its own.

    python benchmarks/train.py [lora] [full] [dpo] [masked_lm] [--quick] [--data rows.jsonl] [--rows 256] [--repeats 3]

    lora, full   smollm2-135m on instructions, loss on the answers only; the peer is TRL's SFTTrainer
    dpo          smollm2-135m with LoRA on preferences; TRL's DPOTrainer
    masked_lm    minilm-l6 on plain text; the Trainer of transformers

Both sides have the same rows, batch size, learning rate, schedule and clipping, for one epoch. Tokens/s counts real tokens (no padding; of a
preference both answers with their prompt) over the whole of training, tokenising and loading left out. Each result is judged by one
evaluator in fp32 on the same held-out rows. ``forward`` is the bare forward of the untrained model over the same rows: the arithmetic allows
training with LoRA at most half of its speed. ``--cores 1`` reports processor time too, which other work on the machine lengthens less.
On a machine with a GPU all sides use it. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _train_work import KINDS, Kind

PEER = {"lora": "TRL", "full": "TRL", "dpo": "TRL", "masked_lm": "HF Trainer"}
WAYS = ("defaults", "tuned", "Luthier")
BARS = {"lora": (6.0, 2.5), "full": (2.0, 1.0), "dpo": (2.0, 1.0), "masked_lm": (2.0, 1.0)}
"""How many times as fast as the peer as it comes, and as the peer tuned."""
FORWARD_BAR = 0.38
LOSS_WITHIN = 0.02


# ---- one way, in its own process


def worker(arguments: argparse.Namespace) -> None:
    """Train one way, judge it, write the figures."""
    import torch
    from _train_work import token_count

    torch.set_num_threads(arguments.cores)
    kind = KINDS[arguments.kinds[0]]
    rows = kind.read(arguments.data or kind.data)
    if len(rows) <= arguments.held_out:
        sys.exit(f"{arguments.data or kind.data} holds {len(rows)} rows; more than {arguments.held_out} are needed")
    count = min(arguments.rows, len(rows) - arguments.held_out)
    train, held_out = rows[:count], rows[count : count + arguments.held_out]
    tokens = token_count(kind, train)
    with tempfile.TemporaryDirectory() as folder:
        start = _with_head(kind, Path(folder) / "start")
        if arguments.worker == "Luthier":
            from _train_luthier import train as run

            spent, module = run(kind, train, start=start)
        else:
            from _train_peer import train as run_peer

            spent, module = run_peer(kind, train, Path(folder), tuned=arguments.worker == "tuned", start=start)
        peak_mb = _peak_mb()
        judged = kind.judge(module(), held_out)
    figures = {
        "tokens": tokens,
        "seconds": spent[0],
        "tokens_per_s": tokens / spent[0],
        "tokens_per_cpu_s": tokens / spent[1],
        "peak_mb": peak_mb,
        **judged,
    }
    if arguments.worker == "Luthier" and kind.name == "lora":
        from _train_luthier import forward_speed

        figures["forward_tokens_per_s"], figures["forward_tokens_per_cpu_s"] = forward_speed(kind, train, tokens)
    arguments.out.write_text(json.dumps(figures), encoding="utf-8")


def _with_head(kind: Kind, folder: Path) -> Path | None:
    """For masked language modelling, the encoder with one and the same new language-model head for all sides."""
    import torch
    from _train_work import base_folder
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    if kind.name != "masked_lm":
        return None
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_pretrained(str(base_folder(kind.model)), dtype=torch.float32).save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(str(base_folder(kind.model))).save_pretrained(str(folder))
    return folder


def _peak_mb() -> float:
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


# ---- all ways, in turn


def measure(kind: str, way: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one way as a process and read its figures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, __file__, kind, "--worker", way, "--out", str(out)]
        for name in ("data", "rows", "held_out", "cores"):
            if (value := getattr(arguments, name)) is not None:
                command += [f"--{name.replace('_', '-')}", str(value)]
        threads = {name: str(arguments.cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{kind}, {way} failed:\n{done.stderr[-4000:]}")
        found: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
        return found


def compare(kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every way ``repeats`` times, in turn: medians, ratios, and whether the losses agree."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for repeat in range(arguments.repeats):
        for way in WAYS:
            runs[way].append(found := measure(kind, way, arguments))
            print(f"{kind} {repeat + 1}/{arguments.repeats} {way:9} {found['tokens_per_s']:7.0f} tokens/s", flush=True)
    figures = {
        way: {name: round(statistics.median(run[name] for run in listed), 4) for name in listed[0]}
        for way, listed in runs.items()
    }
    own, ratios = figures["Luthier"], {}
    for per in ("s", "cpu_s"):
        for way in WAYS[:2]:
            ratios[f"over_{way}_{per}"] = round(own[f"tokens_per_{per}"] / figures[way][f"tokens_per_{per}"], 2)
        if f"forward_tokens_per_{per}" in own:
            ratios[f"of_forward_{per}"] = round(own[f"tokens_per_{per}"] / own[f"forward_tokens_per_{per}"], 3)
    worst = max(own["loss"] / figures[way]["loss"] - 1 for way in WAYS[:2])
    quality = {"loss_above_peer": round(worst, 4), "allowed": LOSS_WITHIN, "same_loss": worst <= LOSS_WITHIN}
    return {"ratios": ratios, "figures": figures, "quality": quality}


def show(kind: str, found: dict[str, Any], arguments: argparse.Namespace) -> None:
    """The table and the bars of one kind of work."""
    own, per = found["figures"]["Luthier"], "cpu_s" if arguments.cores == 1 else "s"
    print(f"\n{KINDS[kind].what}, {KINDS[kind].model}: {own['tokens']:,.0f} tokens, median of {arguments.repeats}")
    unit = "tokens a second" + (" of one core's time" if per == "cpu_s" else f" on {arguments.cores} cores")
    print(f"{'':20} {unit:>34} {'ratio':>7} {'peak MB':>9} {'held-out loss':>14} {'accuracy':>9}")
    for way, each in found["figures"].items():
        name = way if way == "Luthier" else f"{PEER[kind]}, {way}"
        ratio = own[f"tokens_per_{per}"] / each[f"tokens_per_{per}"]
        line = f"{name:20} {each[f'tokens_per_{per}']:34.0f} {ratio:6.2f}x {each['peak_mb']:9.0f} {each['loss']:14.4f}"
        print(line + (f" {each['accuracy']:9.3f}" if "accuracy" in each else ""))
    said = [
        (f"over {PEER[kind]}, {way}", found["ratios"][f"over_{way}_{per}"], bar)
        for way, bar in zip(WAYS, BARS[kind], strict=False)
    ]
    if f"of_forward_{per}" in found["ratios"]:
        said.append(("of the forward alone", found["ratios"][f"of_forward_{per}"], FORWARD_BAR))
    for name, value, bar in said:
        print(f"{name}: {value} (bar {bar:g}, {'met' if value >= bar else 'NOT met'})")
    peak = max(found["figures"][way]["peak_mb"] for way in WAYS[:2])
    print(
        f"memory: {own['peak_mb'] / peak:.2f} of the peer's; loss {found['quality']['loss_above_peer']:+.2%} of the peer's"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"Of {', '.join(KINDS)}; left out: lora.")
    parser.add_argument("--data", type=Path, help="Rows of the right kind; left out: made of the sample task.")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="48 rows, once: under five minutes on two cores for lora")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.kinds = arguments.kinds or ["lora"]
    if unknown := set(arguments.kinds) - set(KINDS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(KINDS)}")
    if arguments.data is not None and len(arguments.kinds) > 1:
        parser.error("--data is for one kind of work at a time")
    if arguments.worker:
        worker(arguments)
        return
    if arguments.quick:
        arguments.rows, arguments.held_out, arguments.repeats = min(arguments.rows, 48), 20, 1
    results = {kind: compare(kind, arguments) for kind in arguments.kinds}
    for kind, found in results.items():
        show(kind, found, arguments)
    whole = {part: {kind: found[part] for kind, found in results.items()} for part in ("ratios", "figures", "quality")}
    print(json.dumps({"benchmark": "train", **whole}))


if __name__ == "__main__":
    main()
