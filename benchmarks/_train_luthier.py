"""Luthier's side of ``train.py``: ``luthier.tune`` as a user calls it, and how fast the bare forward of the same model is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from _train_work import ALPHA, LENGTH, RANK, Kind, Rows

Spent = tuple[float, float]
FORWARD_TOKENS = 2048


def train(kind: Kind, rows: Rows, *, start: Path | None) -> tuple[Spent, Any]:
    """Train; returns seconds and processor seconds of the loop (of preferences with what the reference model says), and a function that gives the
    trained module in fp32 for the judge. ``start`` is the encoder with a language-model head to begin from."""
    from luthier.core.dataset import Dataset, Splits
    from luthier.models.pull import pull
    from luthier.store.database import open_store
    from luthier.training.tune import tune

    store = open_store()
    base = kind.model
    if start is not None:
        base = pull(f"file:{start}", alias="benchmark-start", store=store, force=True).name
    data = _dataset(kind, rows)
    nothing = Dataset("nothing", data.kind, ())
    watch = _Watch()
    config = {"name": "benchmark-train", "model": base, **_work(kind)}
    result = tune(
        config,
        splits=Splits(data, nothing, nothing),
        store=store,
        progress=watch.progress,
        metrics=watch.step,
        resume=False,
        replace=True,
    )
    return watch.spent, lambda: _module(kind, store, result.model)


class _Watch:
    """The clock runs from the model in memory to the last step: tokenising and the reference model's answers are in it."""

    def __init__(self) -> None:
        self._began = self._end = (0.0, 0.0)

    @property
    def spent(self) -> Spent:
        return self._end[0] - self._began[0], self._end[1] - self._began[1]

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage == "load" and done:
            self._began = time.perf_counter(), time.process_time()

    def step(self, record: Any) -> None:
        self._end = time.perf_counter(), time.process_time()


def _work(kind: Kind) -> dict[str, Any]:
    method: dict[str, Any] = {"name": "lora", "rank": RANK, "alpha": ALPHA}
    if kind.name in ("full", "masked_lm"):
        method = {"name": "full"}
    objective = {
        "dpo": {"name": "dpo", "beta": 0.1},
        "masked_lm": {"name": "masked_lm", "length": LENGTH},
    }.get(kind.name, {"name": "sft"})
    settings = {"epochs": 1, "batch_size": kind.batch, "learning_rate": kind.rate, "schedule": "linear", "warmup": 0}
    return {"method": method, "objective": objective, "train": settings}


def _dataset(kind: Kind, rows: Rows) -> Any:
    from luthier.core.dataset import Dataset, Example
    from luthier.core.message import Message
    from luthier.models.load import load_tokenizer

    if kind.name == "dpo":
        found = [Example(str(i), prompt, chosen=good, rejected=bad) for i, (prompt, good, bad) in enumerate(rows)]
        return Dataset("benchmark", "preference", tuple(found))
    if kind.name == "masked_lm":
        from _train_work import base_folder

        tokenizer = load_tokenizer(base_folder(kind.model))
        texts = [tokenizer.decode(row[1:-1]) for row in rows]
        return Dataset("benchmark", "text", tuple(Example(str(i), (Message("user", t),)) for i, t in enumerate(texts)))
    return Dataset("benchmark", "chat", tuple(Example(str(i), row) for i, row in enumerate(rows)))


def _module(kind: Kind, store: Any, record: Any) -> Any:
    from luthier.models.adapters import inner_of
    from luthier.models.load import load_model
    from luthier.models.masked_head import masked_head

    model = load_model(store, record, dtype="fp32", device="cpu")
    if kind.name != "masked_lm":
        return model.module.eval()
    head, body = masked_head(model), inner_of(model).eval()

    def logits(ids: Any) -> Any:
        hidden = body(input_ids=ids).last_hidden_state[0]
        out = head(hidden) @ head.weight(body).t()
        return (out if head.bias is None else out + head.bias)[None]

    return logits


def forward_speed(kind: Kind, rows: Rows, tokens: int) -> tuple[float, float]:
    """Tokens per second, and per second of processor time, of the untrained model's forward over the same rows: its body, and the loss of the answers."""
    from luthier.core import catalog
    from luthier.core.task import PromptTemplate
    from luthier.models.fast import speed_up
    from luthier.models.load import load_model
    from luthier.objectives._rows import Limits
    from luthier.store.database import open_store
    from luthier.training.work import Work, mean_loss

    model = load_model(open_store(), kind.model)
    sft = catalog.load("objectives", "sft")
    config = sft.configure()
    made = sft.module.prepare(_dataset(kind, rows), model, PromptTemplate(), config, Limits(model.context_length))
    speed_up(model.module)
    work = Work(made, lambda batch: sft.module.collate(batch, model), lambda batch: sft(model, batch, config))
    mean_loss(Work(made[:4], work.collate, work.loss), max_tokens=FORWARD_TOKENS)
    began, cpu = time.perf_counter(), time.process_time()
    mean_loss(work, max_tokens=FORWARD_TOKENS)
    return tokens / (time.perf_counter() - began), tokens / (time.process_time() - cpu)
