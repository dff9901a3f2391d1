"""One training of ``methods.py`` on one side: by Luthier, or by PEFT and the Trainer of transformers. Each runs in a process of its own.

Both sides read the same rows of the same tokens, for as many epochs, with the same learning rate, batch size, schedule, warmup, weight
decay and clipping. Time runs from the model with its method in memory to the last step, tokenising and features included. Memory is the
process's largest resident size while training; ``over_base_mb`` leaves out what was resident before loading and the base's own weights.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from _labelled import macro_f1, only_training, read_rows

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
def sets(folder: Path, rows: int, test: int) -> tuple[Any, Any, Any]:
    """(training rows, test rows, prompt)."""
    from luthier.core.task import PromptTemplate
    from luthier.tasks.own import CLASSIFY_INSTRUCTION

    train = read_rows(folder / "train.jsonl", rows)
    return train, read_rows(folder / "test.jsonl", test), PromptTemplate(CLASSIFY_INSTRUCTION, labels=train.labels)


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
            train, _, prompt = sets(place.data / name, cell.rows, cell.test)
            tune(
                _config(other, place, store, f"part-{cell.model}-{name}"),
                splits=only_training(train),
                prompt=prompt,
                store=store,
            )


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


class _Watch:
    """What ``luthier.tune`` tells of a training: when it was ready to begin and at its end, and how good the model was then."""

    def __init__(self, limit_s: float, judge: Callable[[Any], float]) -> None:
        self._limit_s, self._judge = limit_s, judge
        self._ready, self._end = (0.0, 0.0), (0.0, 0.0)
        self.trained, self.tokens, self.peak_mb = 0, 0.0, 0.0
        self.quality: float | None = None

    @property
    def spent(self) -> tuple[float, float]:
        """Seconds, and seconds of processor time, from the model in memory to the last step."""
        return self._end[0] - self._ready[0], self._end[1] - self._ready[1]

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage == "load" and done:
            self._ready = _now()

    def started(self, start: Any) -> None:
        self.trained = start.trainable_parameters

    def note(self, line: Any) -> None:
        """Raises Halt when the time is up."""
        if self.quality is not None:
            return
        self._end, self.peak_mb, self.tokens = _now(), line["peak_mb"], line["tokens"]
        if self.spent[0] > self._limit_s:
            from luthier.training.interrupt import Halt

            raise Halt("time is up")

    def score(self, model: Any) -> dict[str, float]:
        """After the last step. Judging is not training: its time and memory do not count."""
        from luthier.training.memory import peak_mb

        self._end, self.peak_mb = _now(), peak_mb(model.device)
        self.quality = self._judge(model)
        return {"macro_f1": self.quality}


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def luthier(cell: Cell, place: Place) -> dict[str, Any]:
    """``luthier.tune`` as a user calls it."""
    import torch

    from luthier.models.load import choose_dtype
    from luthier.models.shapes import load_shapes
    from luthier.store.database import open_store
    from luthier.store.models import find, remove
    from luthier.training.interrupt import Halt
    from luthier.training.memory import resident_mb
    from luthier.training.tune import tune

    store = open_store(place.home)
    train, test, prompt = sets(place.data / cell.dataset, cell.rows, cell.test)
    record = find(store, cell.model)
    element = 2 if choose_dtype() == torch.bfloat16 else 4
    weights_mb = sum(p.numel() for p in load_shapes(store, record).module.parameters()) * element / 1e6
    gc.collect()
    before_mb = resident_mb() + weights_mb
    if cell.method == "adapter_fusion":
        parts(cell, place, store)
    name = f"{cell.dataset}-{cell.method}-{cell.seed}"
    config = _config(cell, place, store, name)
    config["train"]["metric"] = "validation_macro_f1"
    wanted = [str(e.target) for e in test.examples]
    watch = _Watch(place.limit_s, lambda model: macro_f1(_answers(model, test, prompt), wanted))
    with suppress(Halt):  # cut short: no model is kept, and what was seen until then is the result, without a quality
        tune(
            config,
            splits=only_training(train),
            prompt=prompt,
            scorer=watch.score,
            store=store,
            metrics=watch.note,
            progress=watch.progress,
            started=watch.started,
            resume=False,
            replace=True,
        )
        remove(store, name)
    tokens = watch.tokens
    if watch.quality is not None:
        tokens = _tokens(train, prompt, load_shapes(store, record)) * config["train"]["epochs"]
    return figures_of(watch.trained, tokens, watch.spent, watch.peak_mb, before_mb, watch.quality)


def figures_of(
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
