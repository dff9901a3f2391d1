"""How fast is log-likelihood evaluation, at the same answers? lm-evaluation-harness and Luthier, in turn, each as a process of its own.

    python benchmarks/evaluate.py --data DATA --peer-python PYTHON [--quick | --full] [--dtype fp32 bf16] [--repeats 3]

Three sets on smollm2-135m: 5-shot MMLU and CMMLU subjects (``DATA/mmlu``, ``DATA/cmmlu``: dev.jsonl and test.jsonl with question, choices,
answer, subject), and 0-shot endings in the manner of HellaSwag: HellaSwag itself is not needed, items are made from ``DATA/pretrain_en``,
a few sentences whose next sentence stands among three sentences of other texts, drawn with a fixed seed. Both sides read the same
files with their own definitions of the benchmarks, in the same dtype on the same cores. lm-evaluation-harness 0.4.13 runs its HF backend in
an environment of its own (``--peer-python``: torch, transformers and lm_eval installed there), at the batch size that is fastest for it
on a sample; with ``--full`` its automatic choice is tried too. What counts is the time that it spends in ``loglikelihood`` and Luthier in
``score``, tokenising included; the processor seconds of that and the whole evaluations are in the figures as well. The prompts are compared to the letter, the choices and the
log-likelihoods one by one. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

MODEL = "smollm2-135m"
EXAMS, ENDINGS = ("mmlu", "cmmlu"), "hellaswag"
BARS = {"mmlu": 5.0, "cmmlu": 5.0, ENDINGS: 2.0}
WAYS = ("lm-evaluation-harness", "Luthier")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
LOGPROB_WITHIN = 1e-3
QUICK, NORMAL, FULL = (2, 16, 40), (4, 24, 80), (10, 40, 200)
"""Subjects of each exam, questions of each subject, endings."""


# ---- the same files for both


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write(path: Path, content: Iterable[Any]) -> None:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")


def prepare(data: Path, folder: Path, subjects: int, questions: int, endings: int) -> None:
    """``folder/mmlu``, ``folder/cmmlu`` with the first questions of some subjects, ``folder/hellaswag`` with made endings."""
    for exam in EXAMS:
        (folder / exam).mkdir()
        test = rows(data / exam / "test.jsonl")
        names = sorted({row["subject"] for row in test})
        step = max(1, len(names) // subjects)
        chosen = names[::step][:subjects]
        write(folder / exam / "dev.jsonl", [r for r in rows(data / exam / "dev.jsonl") if r["subject"] in chosen])
        kept = [[row for row in test if row["subject"] == name][:questions] for name in chosen]
        write(folder / exam / "test.jsonl", [row for part in kept for row in part])
    (folder / ENDINGS).mkdir()
    write(folder / ENDINGS / "validation.jsonl", make_endings(rows(data / "pretrain_en" / "test.jsonl"), endings))


def make_endings(texts: Sequence[dict[str, Any]], count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Items with the fields of HellaSwag: two or three sentences, the one that follows, and three from other texts."""
    draw = random.Random(seed)
    cut = [[s.strip() for s in re.split(r"(?<=[.!?])\s+", row["text"]) if 20 < len(s.strip()) < 220] for row in texts]
    cut = [sentences for sentences in cut if len(sentences) > 8]
    out = []
    for _ in range(count):
        own = draw.randrange(len(cut))
        at, size = draw.randrange(len(cut[own]) - 4), draw.randint(2, 3)
        others = draw.sample([number for number in range(len(cut)) if number != own], 3)
        endings = [draw.choice(cut[number]) for number in others]
        right = draw.randrange(4)
        endings.insert(right, cut[own][at + size])
        context = " ".join(cut[own][at : at + size])
        out.append(
            {"activity_label": "Reading", "ctx_a": context, "ctx_b": "", "endings": endings, "label": str(right)}
        )
    return out


# ---- one way, in its own process


def run_harness(arguments: argparse.Namespace) -> dict[str, Any]:
    """lm-evaluation-harness over the sets. Needs only its own environment."""
    import lm_eval
    import torch
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(arguments.cores)
    own = Path(lm_eval.__file__).parent / "tasks"
    definitions = arguments.work / "lm_eval"
    definitions.mkdir(exist_ok=True)
    tasks = {exam: harness_exam(exam, arguments.work, definitions, own) for exam in EXAMS}
    tasks[ENDINGS] = [harness_endings(arguments.work, definitions, own)]
    model = HFLM(pretrained=str(arguments.model), dtype=DTYPES[arguments.worker_dtype], device="cpu", max_batch_size=32)
    manager = TaskManager(include_path=str(definitions), include_defaults=False)
    inner, spent = model.loglikelihood, [0.0, 0.0]

    def timed(requests: Any, **options: Any) -> Any:
        began, used = time.perf_counter(), time.process_time()
        try:
            return inner(requests, **options)
        finally:
            spent[0] += time.perf_counter() - began
            spent[1] += time.process_time() - used

    model.loglikelihood = timed

    def evaluate(
        names: list[str], shots: int, size: int | str, limit: int | None = None
    ) -> tuple[Any, float, float, float]:
        model.batch_size_per_gpu = size
        spent[:], began = [0.0, 0.0], time.perf_counter()
        found = simple_evaluate(
            model,
            tasks=names,
            num_fewshot=shots,
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            verbosity="ERROR",
        )
        return found, spent[0], spent[1], time.perf_counter() - began

    out: dict[str, Any] = {}
    for name, names in tasks.items():
        shots = 5 if name in EXAMS else 0
        sizes = dict(arguments.sizes or {})
        if name not in sizes:
            tried = {}
            for size in arguments.try_sizes:
                few = max(1, 4 // len(names)) if name in EXAMS else 4
                model.batch_sizes = {}
                tried[size] = evaluate(names[:4], shots, size, few)[1]
            sizes[name] = min(tried, key=tried.__getitem__)
            print(f"{name}: seconds by batch size {tried}", file=sys.stderr)
        found, score_s, cpu_s, total_s = evaluate(names, shots, sizes[name])
        items = []
        for task in names:
            for sample in sorted(found["samples"][task], key=lambda sample: sample["doc_id"]):
                asked = [list(argument[:2]) for argument in harness_arguments(sample)]
                items.append([[*pair, *said] for pair, said in zip(asked, harness_said(sample), strict=True)])
        out[name] = {"score_s": score_s, "cpu_s": cpu_s, "total_s": total_s, "batch_size": sizes[name], "items": items}
    return out


def harness_arguments(sample: dict[str, Any]) -> list[Any]:
    """(context, continuation) of each choice, from a logged sample."""
    asked = sample["arguments"]
    return list(asked.values()) if isinstance(asked, dict) else list(asked)


def harness_said(sample: dict[str, Any]) -> list[tuple[float, bool]]:
    """(log-likelihood, greedy) of each choice, from a logged sample."""
    return [(float(value), str(greedy) == "True") for (value, greedy) in (one[0] for one in sample["resps"])]


def harness_exam(exam: str, work: Path, definitions: Path, own: Path) -> list[str]:
    """Write one task a subject: the harness's definition over the local files; their names."""
    import yaml

    folder = own / "mmlu" / "default" if exam == "mmlu" else own / "cmmlu"
    names = []
    for subject in dict.fromkeys(row["subject"] for row in rows(work / exam / "test.jsonl")):
        files = {}
        for part in ("dev", "test"):
            kept = [row for row in rows(work / exam / f"{part}.jsonl") if row["subject"] == subject]
            if exam == "cmmlu":  # the fields of the published files
                kept = [
                    {
                        "Question": r["question"],
                        **dict(zip("ABCD", r["choices"], strict=True)),
                        "Answer": "ABCD"[r["answer"]],
                    }
                    for r in kept
                ]
            files[part] = str(definitions / f"{exam}_{subject}.{part}.jsonl")
            write(Path(files[part]), kept)
        described = yaml.safe_load((folder / f"{exam}_{subject}.yaml").read_text(encoding="utf-8"))["description"]
        names.append(f"{exam}_{subject}")
        definition = {
            "include": str(folder / "_default_template_yaml"),
            "task": names[-1],
            "description": described,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
        }
        (definitions / f"{names[-1]}.yaml").write_text(json.dumps(definition), encoding="utf-8")
    return names


def harness_endings(work: Path, definitions: Path, own: Path) -> str:
    """Write the harness's HellaSwag over the local file; its name."""
    definition = {
        "include": str(own / "hellaswag" / "hellaswag.yaml"),
        "task": "made_endings",
        "tag": [],
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(work / ENDINGS / "validation.jsonl")}},
        "training_split": None,
    }
    (definitions / "made_endings.yaml").write_text(json.dumps(definition), encoding="utf-8")
    return "made_endings"


class Timed:
    """An engine that counts the seconds of ``score`` and keeps what was asked and said."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.seconds, self.cpu_seconds = engine, 0.0, 0.0
        self.said: dict[tuple[str, str], tuple[float, bool]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def score(self, requests: Sequence[Any], *rest: Any) -> Any:
        """As the engine's."""
        began, used = time.perf_counter(), time.process_time()
        scored = self._engine.score(requests, *rest)
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - used
        for request, row in zip(requests, scored, strict=True):
            for text, one in zip(request.continuations, row, strict=True):
                self.said[request.prompt, text] = (one.logprob, one.greedy)
        return scored


def run_luthier(arguments: argparse.Namespace) -> dict[str, Any]:
    """Luthier's evaluation loop over the sets, with an engine that is open already."""
    from luthier.core.engine import ScoreRequest
    from luthier.core.run import no_progress
    from luthier.engines._open import open_engine
    from luthier.evaluation.loop import run_loop
    from luthier.store.database import open_store
    from luthier.tasks._load import load_task

    store = open_store()
    options = {"dtype": arguments.worker_dtype, "device": "cpu", "threads": arguments.cores}
    engine = open_engine(store, MODEL, "torch", options)
    engine.score([ScoreRequest("A first request", (" warms up", " as the peer does"))])
    out: dict[str, Any] = {}
    for name in (*EXAMS, ENDINGS):
        data = arguments.work / name / ("validation.jsonl" if name == ENDINGS else "")
        began = time.perf_counter()
        task = load_task(name, [f"data={data}"])
        timed = Timed(engine)
        records: list[Any] = []
        run_loop(timed, task, task.examples("test"), done=(), keep=records.extend, progress=no_progress)  # type: ignore[arg-type]
        total_s = time.perf_counter() - began
        items = [[[e.raw[0], text, *timed.said[e.raw[0], text]] for text in e.choices] for e in task.examples("test")]
        out[name] = {"score_s": timed.seconds, "cpu_s": timed.cpu_seconds, "total_s": total_s, "items": items}
    return out


# ---- all, in turn


def measure(way: str, dtype: str, arguments: argparse.Namespace, sizes: dict[str, Any] | None) -> dict[str, Any]:
    """Run one way as a process and read what it wrote."""
    out = arguments.work / "out.json"
    python = arguments.peer_python if way == WAYS[0] else sys.executable
    command = [str(python), __file__, "--worker", way, "--worker-dtype", dtype, "--out", str(out)]
    command += ["--work", str(arguments.work), "--cores", str(arguments.cores), "--model", str(arguments.model)]
    command += ["--try-sizes", *map(str, arguments.try_sizes)]
    if sizes:
        command += ["--sizes", json.dumps(sizes)]
    threads = {name: str(arguments.cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{way} failed:\n{done.stderr[-4000:]}")
    for line in done.stderr.splitlines():
        if "seconds by batch size" in line:
            print(f"    {line}", flush=True)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def compare_dtype(dtype: str, arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """(figures, quality) of each set in one dtype: medians over the repeats, both ways in turn."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    sizes: dict[str, Any] | None = None
    for repeat in range(arguments.repeats):
        for way in WAYS:
            runs[way].append(found := measure(way, dtype, arguments, sizes))
            if way == WAYS[0]:
                sizes = {name: each["batch_size"] for name, each in found.items()}
            said = ", ".join(f"{name} {each['score_s']:.1f} s" for name, each in found.items())
            print(f"{repeat + 1}/{arguments.repeats} {dtype} {way:22} {said}", flush=True)
    figures: dict[str, Any] = {}
    for name in BARS:
        figures[name] = {"questions": len(runs[WAYS[1]][0][name]["items"]), "batch_size": (sizes or {})[name]}
        for key, way in (("harness", WAYS[0]), ("luthier", WAYS[1])):
            for what in ("score_s", "cpu_s", "total_s"):
                figures[name][f"{key}_{what}"] = round(median([r[name][what] for r in runs[way]]), 3)
    pairs = {name: (runs[WAYS[0]][-1][name]["items"], runs[WAYS[1]][-1][name]["items"]) for name in BARS}
    return figures, {name: agreement(*both) for name, both in pairs.items()}


def median(values: list[float]) -> float:
    """The middle value, the lower of two."""
    return sorted(values)[(len(values) - 1) // 2]


def agreement(theirs: list[Any], ours: list[Any]) -> dict[str, Any]:
    """Whether prompts, choices and log-likelihoods are the same."""
    asked = {json.dumps([option[:2] for option in item]): item for item in theirs}
    same_prompts = len(theirs) == len(ours) and all(json.dumps([o[:2] for o in item]) in asked for item in ours)
    if not same_prompts:
        return {"same_prompts": False, "same_choices": 0.0, "worst_logprob": float("inf"), "same_greedy": 0.0}
    choices = greedy = options = 0
    worst = 0.0
    for item in ours:
        other = asked[json.dumps([option[:2] for option in item])]
        choices += best(item) == best(other)
        for mine, its in zip(item, other, strict=True):
            options += 1
            worst = max(worst, abs(mine[2] - its[2]))
            greedy += mine[3] == its[3]
    return {
        "same_prompts": True,
        "same_choices": choices / len(ours),
        "worst_logprob": worst,
        "same_greedy": greedy / options,
    }


def best(item: list[Any]) -> int:
    """The likeliest choice."""
    return max(range(len(item)), key=lambda number: item[number][2])


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """The result: ratios of the first dtype, figures and quality of all."""
    figures, quality = {}, {}
    for dtype in arguments.dtype:
        figures[dtype], quality[dtype] = compare_dtype(dtype, arguments)
    first = figures[arguments.dtype[0]]
    ratios = {name: round(each["harness_score_s"] / each["luthier_score_s"], 2) for name, each in first.items()}
    return {"benchmark": "evaluate", "ratios": ratios, "figures": figures, "quality": quality}


def show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """The tables, the bars, and the line of JSON."""
    for dtype, sets in result["figures"].items():
        print(
            f"\n{MODEL} in {dtype}, {arguments.cores} cores, median of {arguments.repeats}; seconds of log-likelihood (whole)"
        )
        print(
            f"{'':10} {'questions':>9} {'batch':>6} {'harness':>18} {'Luthier':>18} {'ratio':>7}  choices   worst log-likelihood"
        )
        for name, each in sets.items():
            agree = result["quality"][dtype][name]
            theirs = f"{each['harness_score_s']:.1f} ({each['harness_total_s']:.1f})"
            ours = f"{each['luthier_score_s']:.1f} ({each['luthier_total_s']:.1f})"
            ratio = each["harness_score_s"] / each["luthier_score_s"]
            print(
                f"{name:10} {each['questions']:9} {each['batch_size']!s:>6} {theirs:>18} {ours:>18} {ratio:6.2f}x"
                f"  {agree['same_choices']:6.1%}   {agree['worst_logprob']:.1e}"
            )
    for name, bar in BARS.items():
        met = "met" if result["ratios"][name] >= bar else "NOT met"
        print(f"{name}: {result['ratios'][name]} (bar {bar:g}, {met})")
    if "fp32" in result["quality"]:
        agree = result["quality"]["fp32"].values()
        same = all(a["same_prompts"] and a["same_choices"] == 1 and a["worst_logprob"] <= LOGPROB_WITHIN for a in agree)
        print(f"the same in fp32 (every choice; log-likelihoods to {LOGPROB_WITHIN:g}): {'yes' if same else 'NO'}")
    print(json.dumps(result), flush=True)


def model_folder() -> Path:
    """The base model in Hugging Face layout, pulled when it is not there."""
    from luthier.models.pull import pull
    from luthier.store.artifacts import path_of
    from luthier.store.database import open_store

    store = open_store()
    return path_of(store, pull(MODEL, store=store).digest)


def size_of(text: str) -> int | str:
    """A batch size of the harness."""
    return text if text == "auto" else int(text)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="a folder with mmlu, cmmlu and pretrain_en")
    parser.add_argument("--peer-python", type=Path, help="the Python of an environment that has lm_eval 0.4.13")
    parser.add_argument("--dtype", nargs="+", choices=tuple(DTYPES), default=["fp32"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="few questions, once: under five minutes on two cores")
    parser.add_argument("--full", action="store_true", help="all subjects, and the harness's automatic batch size too")
    parser.add_argument("--try-sizes", nargs="+", type=size_of, default=[1, 4, 8], help="batch sizes of the harness")
    counts = "subjects of each exam, questions of each subject, endings"
    parser.add_argument("--counts", nargs=3, type=int, metavar="N", help=counts)
    for name in ("--worker", "--worker-dtype"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--work", "--out", "--model"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        here = Path(__file__).resolve().parent  # modules beside this file must not stand in for others of the same name
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
        run = run_harness if arguments.worker == WAYS[0] else run_luthier
        arguments.out.write_text(json.dumps(run(arguments)), encoding="utf-8")
        return
    if arguments.data is None:
        parser.error("--data is needed: a folder with mmlu, cmmlu (dev.jsonl and test.jsonl) and pretrain_en")
    if arguments.peer_python is None:
        parser.error(
            "--peer-python is needed: python -m venv PEER; PEER/bin/pip install torch transformers accelerate lm_eval==0.4.13"
        )
    usual = QUICK if arguments.quick else FULL if arguments.full else NORMAL
    subjects, questions, endings = arguments.counts or usual
    if arguments.quick:
        arguments.repeats, arguments.try_sizes = 1, arguments.try_sizes[:2]
    if arguments.full:
        arguments.try_sizes = [*arguments.try_sizes, 16, "auto"]
    with tempfile.TemporaryDirectory() as folder:
        arguments.work, arguments.model = Path(folder), model_folder()
        prepare(arguments.data, arguments.work, subjects, questions, endings)
        show(compare(arguments), arguments)


if __name__ == "__main__":
    main()
