"""What do 100 LoRA adapters on one base cost, and how fast do they answer? Plain PEFT and Luthier, each as a process of its own.

    python benchmarks/adapters.py [--quick] [--adapters 100] [--rank 8]

SmolLM2-135M in bf16 with random LoRA adapters on all linear layers, in PEFT's layout on disk, the same files for both. PEFT loads them with
``load_adapter`` into one ``PeftModel``, chooses with ``set_adapter`` and answers mixed batches with ``generate(adapter_names=...)``;
Luthier opens an engine for each and answers with ``generate_mixed``. Memory is what the process holds resident: with the base alone,
after it has answered once, and with all adapters. The bar is at most 10% over the base alone plus the bytes of the adapters' own tensors.
Speed is new tokens per second of one prompt for each of eight adapters: each alone, then all in one batch. The same prompts are
answered in fp32 by both, alone and mixed, and every token is compared. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

MODEL = "smollm2-135m"
WAYS = ("PEFT", "Luthier")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BAR = 1.10
MIXED, TOKENS = 8, 16
TEXTS = [
    "Once upon a time there was a violin that",
    "The capital of France is a city where",
    "To tune a guitar, first loosen the string and",
    "The sky is blue because the light of the sun",
    "Last night the moon was so bright that we",
    "Wash the rice in cold water, then put it",
    "In the year 1905 a young clerk in Bern",
    "The parcel had been on its way for weeks when",
]


def make_store(folder: Path, count: int, rank: int) -> list[Path]:
    """A store of its own with the base and ``count`` random adapters ``a0``, ``a1``, ...; their folders."""
    import torch
    from peft import LoraConfig, get_peft_model

    from luthier.core.model import ModelRecord
    from luthier.models.attach import save_trained
    from luthier.models.load import load_model
    from luthier.models.pull import pull
    from luthier.store.artifacts import path_of, put, staged
    from luthier.store.database import open_store
    from luthier.store.models import register

    base = pull(MODEL)
    store = open_store(folder)
    with staged(store) as copy:
        shutil.copytree(path_of(open_store(), base.digest), copy, dirs_exist_ok=True)
        put(store, copy)
    register(store, base)
    model = load_model(store, MODEL, dtype="bf16", device="cpu")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM")
    model.module = get_peft_model(model.module, config, autocast_adapter_dtype=False)
    paths = []
    for number in range(count):
        torch.manual_seed(number)
        for name, parameter in model.module.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.01)
        with staged(store) as made:
            save_trained(model, made, {"saves": "adapter", "method": {"name": "lora", "config": {"rank": rank}}})
            digest, size = put(store, made)
        register(store, ModelRecord(f"a{number}", "adapter", "decoder", digest, size, base=MODEL))
        paths.append(path_of(store, digest))
    return paths


def resident_mb() -> float:
    """Memory that this process holds, garbage aside, in MB."""
    from luthier.training.memory import resident_mb as now_mb

    gc.collect()
    return now_mb()


def seconds(work: Callable[[], Any]) -> float:
    """How long ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def speed(work: Callable[[], list[list[int]]]) -> float:
    """Tokens that ``work`` returns, per second."""
    began = time.perf_counter()
    made = sum(map(len, work()))
    return made / (time.perf_counter() - began)


class Luthier:
    """An engine for each adapter, on one base."""

    def __init__(self, folder: Path, dtype: str) -> None:
        from luthier.core.engine import Sampling
        from luthier.engines._open import open_engine
        from luthier.store.database import open_store

        self._open: Any = lambda name: open_engine(
            open_store(folder), name, "torch", {"dtype": dtype, "device": "cpu"}, shared=shared
        )
        shared: dict[Any, Any] = {}
        self._sampling = Sampling(max_new_tokens=TOKENS)
        self._base = self._open(MODEL)
        self._engines: list[Any] = []

    def attach(self, number: int, path: Path) -> None:
        """One more adapter."""
        self._engines.append(self._open(f"a{number}"))

    def choose(self, number: int) -> None:
        """Make it the one that answers."""
        with self._base.shared_base.using(self._engines[number].key):
            pass

    def alone(self, prompt: str, number: int | None) -> list[int]:
        """The tokens of one answer."""
        engine = self._base if number is None else self._engines[number]
        return list(engine.generate([prompt], self._sampling)[0].token_ids)

    def together(self, prompts: Sequence[str], numbers: Sequence[int]) -> list[list[int]]:
        """The tokens of several, each by its own adapter."""
        from luthier.engines._mixed import generate_mixed

        answers = generate_mixed([self._engines[n] for n in numbers], prompts, self._sampling)
        return [list(answer.token_ids) for answer in answers]


class Peft:
    """One PeftModel with all adapters."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from luthier.store.artifacts import path_of
        from luthier.store.database import open_store
        from luthier.store.models import find

        store = open_store(folder)
        base = str(path_of(store, find(store, MODEL).digest))
        kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
        self._tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=kind).eval()
        self._kind = kind
        self._wrapped = False
        ends: Any = self._model.generation_config.eos_token_id
        self._ends = [ends] if isinstance(ends, int) else list(ends)

    def attach(self, number: int, path: Path) -> None:
        """One more adapter."""
        from peft import PeftModel

        options = {"adapter_name": f"a{number}", "autocast_adapter_dtype": False, "low_cpu_mem_usage": True}
        if not self._wrapped:
            self._model, self._wrapped = PeftModel.from_pretrained(self._model, str(path), **options), True
        else:
            self._model.load_adapter(str(path), **options)
        if self._kind.itemsize == 4:  # the files are bf16
            self._model.to(self._kind)

    def choose(self, number: int) -> None:
        """Make it the one that answers."""
        self._model.set_adapter(f"a{number}")

    def alone(self, prompt: str, number: int | None) -> list[int]:
        """The tokens of one answer."""
        if number is not None:
            self.choose(number)
        return self._answer([prompt])[0]

    def together(self, prompts: Sequence[str], numbers: Sequence[int]) -> list[list[int]]:
        """The tokens of several, each by its own adapter."""
        return self._answer(prompts, adapter_names=[f"a{number}" for number in numbers])

    def _answer(self, prompts: Sequence[str], **options: Any) -> list[list[int]]:
        import torch

        batch = self._tokenizer(list(prompts), return_tensors="pt", padding=True)
        with torch.inference_mode():
            out = self._model.generate(
                **batch, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0, eos_token_id=self._ends, **options
            )
        made = [row[batch["input_ids"].shape[1] :].tolist() for row in out]
        return [row[: next((at for at, token in enumerate(row) if token in self._ends), None)] for row in made]


def worker(arguments: argparse.Namespace) -> None:
    """Measure one way in this process."""
    import torch

    torch.set_num_threads(arguments.cores)
    way: Any = {"PEFT": Peft, "Luthier": Luthier}[arguments.worker]
    paths = [Path(line) for line in (arguments.work / "paths").read_text().splitlines()]
    model = way(arguments.work, "bf16")
    model.alone(TEXTS[0], None)
    base_mb = resident_mb()
    attach = [seconds(lambda n=n, p=p: model.attach(n, p)) for n, p in enumerate(paths)]  # type: ignore[misc]
    model.alone(TEXTS[0], 0)
    all_mb = resident_mb()
    count = len(paths)
    choose = [seconds(lambda n=n: model.choose(n % count)) for n in range(20)]  # type: ignore[misc]
    numbers = [number * count // MIXED for number in range(MIXED)]
    model.together(TEXTS, numbers)
    one_by_one, mixed = [], []
    for _ in range(arguments.repeats):
        one_by_one.append(speed(lambda: [model.alone(q, n) for q, n in zip(TEXTS, numbers, strict=True)]))
        mixed.append(speed(lambda: model.together(TEXTS, numbers)))
    answers = check(way, arguments.work, paths[:MIXED])
    figures = {
        "base_mb": base_mb,
        "all_mb": all_mb,
        "first_attach_ms": 1e3 * attach[0],
        "attach_ms": 1e3 * statistics.median(attach[1:] or attach),
        "last_attach_ms": 1e3 * statistics.median(attach[-5:]),
        "select_ms": 1e3 * statistics.median(choose),
        "alone_tokens_per_s": statistics.median(one_by_one),
        "mixed_tokens_per_s": statistics.median(mixed),
    }
    arguments.out.write_text(json.dumps({"figures": figures, "answers": answers}), encoding="utf-8")


def check(way: Any, folder: Path, paths: Sequence[Path]) -> dict[str, list[list[int]]]:
    """Answers in fp32, alone and mixed."""
    model = way(folder, "fp32")
    for number, path in enumerate(paths):
        model.attach(number, path)
    numbers = [number % len(paths) for number in range(MIXED)]
    alone = [model.alone(text, number) for text, number in zip(TEXTS, numbers, strict=True)]
    return {"alone": alone, "mixed": model.together(TEXTS, numbers)}


def measure(way: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run one way as a process and read what it found."""
    out = work / f"{way}.json"
    command = [sys.executable, __file__, "--worker", way, "--work", str(work), "--out", str(out)]
    command += ["--cores", str(arguments.cores), "--repeats", str(arguments.repeats)]
    threads = {name: str(arguments.cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{way} failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def agreement(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """The share of answers whose tokens are all the same."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways on the same files."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        paths = make_store(work, arguments.adapters, arguments.rank)
        own = sum(t.nbytes for p in paths for t in load_file(p / "adapter_model.safetensors").values()) / 1e6
        (work / "paths").write_text("\n".join(map(str, paths)), encoding="utf-8")
        found = {way: measure(way, arguments, work) for way in WAYS}
    figures = {way: each["figures"] | {"adapters_mb": own} for way, each in found.items()}
    over = {way: f["all_mb"] / (f["base_mb"] + own) for way, f in figures.items()}
    ours, theirs = figures["Luthier"], figures["PEFT"]
    answers = {way: each["answers"] for way, each in found.items()}
    return {
        "benchmark": "adapters",
        "ratios": {
            "memory_over_base_and_adapters": round(over["Luthier"], 3),
            "memory_over_base_and_adapters_peft": round(over["PEFT"], 3),
            "attach_peft_over_ours": round(theirs["attach_ms"] / ours["attach_ms"], 1),
            "select_peft_over_ours": round(theirs["select_ms"] / ours["select_ms"], 1),
            "mixed_over_one_by_one": round(ours["mixed_tokens_per_s"] / ours["alone_tokens_per_s"], 2),
            "mixed_ours_over_peft": round(ours["mixed_tokens_per_s"] / theirs["mixed_tokens_per_s"], 2),
        },
        "figures": {way: {k: round(v, 4) for k, v in each.items()} for way, each in figures.items()},
        "quality": {
            "answers_as_peft": agreement(answers["Luthier"]["alone"], answers["PEFT"]["alone"]),
            "mixed_as_alone": agreement(answers["Luthier"]["mixed"], answers["Luthier"]["alone"]),
        },
    }


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """The table, the bar, and the line of JSON."""
    print(f"{arguments.adapters} LoRA adapters r={arguments.rank} on {MODEL}, bf16, {arguments.cores} cores")
    print(f"{'':26} {'PEFT':>10} {'Luthier':>10}")
    for name in result["figures"]["Luthier"]:
        print(f"{name:26} {result['figures']['PEFT'][name]:10.2f} {result['figures']['Luthier'][name]:10.2f}")
    over, quality = result["ratios"]["memory_over_base_and_adapters"], result["quality"]
    met = "met" if over <= BAR else "NOT met"
    print(f"memory over base + adapters: {over} (bar {BAR}, {met}); PEFT: ", end="")
    print(result["ratios"]["memory_over_base_and_adapters_peft"])
    print(f"fp32 answers as PEFT's: {quality['answers_as_peft']:.0%}; mixed as alone: {quality['mixed_as_alone']:.0%}")
    print(json.dumps(result))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="one repeat: under five minutes on two cores")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    if arguments.quick:
        arguments.repeats = 1
    show(compare(arguments), arguments)


if __name__ == "__main__":
    main()
