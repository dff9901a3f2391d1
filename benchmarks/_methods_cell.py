"""One training of ``methods.py`` on one side: by Luthier, or by PEFT and the Trainer of transformers. Each runs in a process of its own.

Both sides read the same rows of the same tokens, for as many epochs, with the same learning rate, batch size, schedule, warmup, weight
decay and clipping. Time runs from the model with its method in memory to the last step, tokenising and features included. Memory is the
process's largest resident size while training; ``over_base_mb`` leaves out what was resident before loading and the base's own weights.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

PRELOAD = [
    "torch",
    "transformers.trainer",
    "peft",
    "sklearn.metrics",
    "luthier.training.tune",
    "luthier.training.loop",
    "luthier.models.score",
]
LONGEST = 400  # characters of a text that are read
SIDES = {"luthier": "Luthier", "peer": "PEFT + Trainer, fp32", "tuned": "PEFT + Trainer, bf16, grouped by length"}


@dataclass(frozen=True)
class Cell:
    """What is trained: a line of the results is known by these."""

    side: str
    model: str
    dataset: str
    method: str
    seed: int
    rows: int
    test: int
    epochs: float
    batch_size: int
    cores: int


@dataclass(frozen=True)
class Place:
    """Where things are: the data's folder, the store, after how many seconds a training is cut short, and all sets."""

    data: Path
    home: Path
    limit_s: float
    sets: tuple[str, ...] = ()


def run(cell: Cell, place: Place, results: Any) -> None:
    """Train, judge, and put the figures (or ``{"error": ...}``) into the queue ``results``."""
    import torch
    import transformers

    torch.set_num_threads(cell.cores)
    transformers.logging.set_verbosity_error()
    try:
        if cell.side == "luthier":
            figures = luthier(cell, place)
        else:
            from _methods_peer import peer

            figures = peer(cell, place)
    except Skip as reason:
        figures = {"skipped": str(reason)}
    except Exception as error:  # noqa: BLE001  a cell that fails is a line of the results, and the others go on
        figures = {"error": f"{type(error).__name__}: {error}"[:1000]}
    results.put(asdict(cell) | {key: round(v, 4) if isinstance(v, float) else v for key, v in figures.items()})


class Skip(Exception):  # noqa: N818  no error
    """There is nothing to measure here, and why."""


# ---- what both sides read


@cache
def _sets(folder: Path, rows: int, test: int) -> tuple[Any, Any, Any]:
    """(training rows, test rows, prompt), drawn evenly over the labels."""
    from luthier.core.message import user
    from luthier.core.task import PromptTemplate
    from luthier.data.read import read
    from luthier.data.split import split
    from luthier.tasks.own import CLASSIFY_INSTRUCTION

    parts = []
    for name, count in (("train", rows), ("test", test)):
        data = read(folder / f"{name}.jsonl")
        if count < len(data):
            share = count / len(data)
            data = split(data, train=share, validation=0.0, test=1.0 - share, seed=0).train
        parts.append(replace(data, examples=tuple(replace(e, messages=user(e.text[:LONGEST])) for e in data.examples)))
    return parts[0], parts[1], PromptTemplate(CLASSIFY_INSTRUCTION, labels=parts[0].labels)


def options(method: str, cell: Cell, place: Place) -> dict[str, Any]:
    """What a method cannot do without."""
    given: dict[str, dict[str, Any]] = {
        "fish_mask": {"data": str(place.data / cell.dataset / "train.jsonl")},
        "peft": {"type": "HRA"},
        "adapter_fusion": {"adapters": [f"part-{cell.model}-{name}" for name in place.sets]},
    }
    return given.get(method, {})


def parts(cell: Cell, place: Place, store: Any) -> None:
    """The trained adapters that ``adapter_fusion`` learns to mix: one of each set, unless they are there from an earlier training."""
    from luthier.core.errors import NotFoundError
    from luthier.store.models import find
    from luthier.training.tune import tune

    if len(place.sets) < 2:
        raise Skip("adapter_fusion mixes adapters of several sets: --sets A B")
    for name in place.sets:
        other = replace(cell, dataset=name, method="pfeiffer_adapter", seed=0)
        try:
            find(store, f"part-{cell.model}-{name}")
        except NotFoundError:
            train, _, prompt = _sets(place.data / name, cell.rows, cell.test)
            tune(
                _config(other, place, store, f"part-{cell.model}-{name}"),
                splits=_only(train),
                prompt=prompt,
                store=store,
            )


def _only(train: Any) -> Any:
    """Splits with training rows alone."""
    from luthier.core.dataset import Splits

    nothing = replace(train, name="none", examples=())
    return Splits(train, nothing, nothing)


def _config(cell: Cell, place: Place, store: Any, name: str) -> dict[str, Any]:
    """What ``luthier tune`` is told."""
    from luthier.core import catalog
    from luthier.store.models import find

    architecture = find(store, cell.model).architecture
    train = settings(cell, catalog.load("methods", cell.method), architecture)
    return {
        "name": name,
        "model": cell.model,
        "method": {"name": cell.method, **options(cell.method, cell, place)},
        "objective": "sft" if architecture == "decoder" else "classify",
        "data": {"overlong": "truncate"},
        "train": {**train, "seed": cell.seed, "device": "cpu", "validate_every": 10**9},
    }


def settings(cell: Cell, entry: Any, architecture: str) -> dict[str, Any]:
    """What both sides train with: the method's defaults, and the benchmark's epochs and batch size where it has none of its own."""
    chosen = {"weight_decay": 0.0, "epochs": cell.epochs, "batch_size": cell.batch_size}
    return chosen | dict(entry.module.DEFAULTS[architecture])


def macro_f1(given: list[str], wanted: list[str]) -> float:
    """scikit-learn's, over the labels of the test rows."""
    from sklearn.metrics import f1_score

    return float(f1_score(wanted, given, labels=sorted(set(wanted)), average="macro", zero_division=0.0))


def first_tokens(renderer: Any, prompt: Any, labels: tuple[str, ...]) -> list[int]:
    """The first token of every label as an answer; they must differ, and the likeliest of them is a decoder's answer."""
    from luthier.core.message import Message

    messages = prompt.messages("text")
    begin = len(renderer.prompt_ids(messages))
    found = [renderer.training_ids((*messages, Message("assistant", label))).ids[begin] for label in labels]
    if len(set(found)) < len(found):
        raise Skip(f"labels begin with the same token: {labels}")
    return found


def base_mb(module: Any) -> float:
    """The weights of a model in MB, tied ones once."""
    return sum(p.numel() * p.element_size() for p in module.parameters()) / 1e6


# ---- Luthier


def luthier(cell: Cell, place: Place) -> dict[str, Any]:
    """``luthier.tune`` as a user calls it."""
    import torch

    from luthier.core import catalog
    from luthier.models.load import choose_dtype
    from luthier.models.shapes import load_shapes
    from luthier.store.database import open_store
    from luthier.store.models import find, remove
    from luthier.training.interrupt import Halt
    from luthier.training.memory import peak_mb, resident_mb
    from luthier.training.tune import tune

    store = open_store(place.home)
    train, test, prompt = _sets(place.data / cell.dataset, cell.rows, cell.test)
    entry, record = catalog.load("methods", cell.method), find(store, cell.model)
    own = settings(cell, entry, record.architecture)
    element = 2 if choose_dtype() == torch.bfloat16 else 4
    weights_mb = sum(p.numel() for p in load_shapes(store, record).module.parameters()) * element / 1e6
    gc.collect()
    before_mb = resident_mb() + weights_mb
    seen: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "load" and done:
            seen["ready"], seen["cpu"] = time.perf_counter(), time.process_time()

    def started(start: Any) -> None:
        seen["trainable"] = start.trainable_parameters

    def note(line: Any) -> None:
        if "end" not in seen or not seen.get("scored"):
            seen["end"], seen["cpu_end"], seen["peak_mb"] = time.perf_counter(), time.process_time(), line["peak_mb"]
        seen["tokens"] = line["tokens"]
        if seen["end"] - seen["ready"] > place.limit_s and "f1" not in seen:
            raise Halt("time is up")

    def score(model: Any) -> dict[str, float]:
        seen["end"], seen["cpu_end"], seen["scored"] = time.perf_counter(), time.process_time(), True
        seen["peak_mb"] = peak_mb(model.device)
        seen["f1"] = macro_f1(_answers(model, test, prompt), [str(e.target) for e in test.examples])
        return {"macro_f1": seen["f1"]}

    name = f"{cell.dataset}-{cell.method}-{cell.seed}"
    config = _config(cell, place, store, name)
    config["train"]["metric"] = "validation_macro_f1"
    if cell.method == "adapter_fusion":
        parts(cell, place, store)
        seen.clear()
    try:
        tune(
            config,
            splits=_only(train),
            prompt=prompt,
            scorer=score,
            store=store,
            metrics=note,
            progress=progress,
            started=started,
            resume=False,
            replace=True,
        )
        remove(store, name)
    except Halt:
        pass
    spent = seen["end"] - seen["ready"], seen["cpu_end"] - seen["cpu"]
    tokens = _tokens(train, prompt, load_shapes(store, record)) * own["epochs"] if "f1" in seen else seen["tokens"]
    return _figures(seen["trainable"], tokens, spent, seen["peak_mb"], before_mb, seen.get("f1"))


def _figures(
    trained: int, tokens: float, spent: tuple[float, float], peak: float, before: float, quality: float | None
) -> dict[str, Any]:
    """``spent``: seconds, and seconds of processor time, which other work on the machine does not lengthen as much."""
    return {
        "trainable": trained,
        "tokens": tokens,
        "seconds": spent[0],
        "cpu_seconds": spent[1],
        "tokens_per_s": tokens / spent[0],
        "tokens_per_cpu_s": tokens / spent[1],
        "peak_mb": peak,
        "over_base_mb": peak - before,
        "macro_f1": quality,
    }


def _tokens(train: Any, prompt: Any, sketch: Any) -> int:
    """Tokens of one epoch, without padding."""
    return sum(
        len(ids)
        for ids, _ in tokenised(train, prompt, sketch.tokenizer, sketch.renderer, sketch.labels or prompt.labels)
    )


def tokenised(rows: Any, prompt: Any, tokenizer: Any, renderer: Any, labels: Any) -> list[tuple[list[int], Any]]:
    """(token ids, label's number) for an encoder, (token ids of prompt and answer, which of them are the answer) for a decoder."""
    from luthier.core.message import Message

    if renderer is None:
        encoded = tokenizer([e.text for e in rows.examples], truncation=True, max_length=512)["input_ids"]
        return [(list(ids), labels.index(str(e.target))) for ids, e in zip(encoded, rows.examples, strict=True)]
    chats = [(*prompt.messages(e.text), Message("assistant", str(e.target))) for e in rows.examples]
    return [(list(row.ids), row.mask) for row in renderer.training_ids_batch(chats)]


def _answers(model: Any, test: Any, prompt: Any) -> list[str]:
    """The label that the trained model gives to every test row."""
    import torch

    from luthier.data.batch import order_by_length, pad
    from luthier.models.score import Row, score_rows

    found = [0] * len(test)
    with torch.inference_mode():
        if model.architecture == "encoder":
            ids = [ids for ids, _ in tokenised(test, prompt, model.tokenizer, None, model.labels)]
            for batch in order_by_length([len(row) for row in ids], 4096):
                made = pad([ids[i] for i in batch], model.tokenizer.pad_token_id)
                for place, best in zip(
                    batch, model.module(made.ids, made.attention_mask).argmax(-1).tolist(), strict=True
                ):
                    found[place] = best
        else:
            starts = [[token] for token in first_tokens(model.renderer, prompt, prompt.labels)]
            rows = [Row(model.renderer.prompt_ids(prompt.messages(e.text)), starts) for e in test.examples]
            scored = score_rows(model.module, rows, model.device)
            found = [max(range(len(values)), key=values.__getitem__) for values in scored]
    return [prompt.labels[place] for place in found]
