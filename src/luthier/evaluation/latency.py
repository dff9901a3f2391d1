"""What one request costs: time when it comes alone, and the memory that answering holds.

A batch hides latency, so a small sample of examples is asked again, one at a time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.core.dataset import Example
from luthier.core.engine import Engine, EngineInfo
from luthier.core.errors import InputError, NotFoundError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress
from luthier.core.task import Task
from luthier.evaluation.asking import choose
from luthier.evaluation.records import Record
from luthier.store.artifacts import files
from luthier.store.database import Store
from luthier.store.models import find

REQUESTS = 20
_WARM_UP = 2
_WEIGHTS = (".safetensors", ".gguf")


def measure(
    engine: Engine, task: Task, examples: Sequence[Example], progress: Progress, *, raw: bool = True
) -> dict[str, Any]:
    """Median and 95th percentile of up to 20 single requests, spread evenly over ``examples``, after two that warm up.

    ``raw`` as in the evaluation that is measured: whether prompts that a benchmark fixes to the letter are asked so.

    Returns ``{"p50_s", "p95_s", "requests"}``; ``requests`` is 0 and the times None when every one of them was refused.
    """
    if not examples:
        return {"p50_s": None, "p95_s": None, "requests": 0}
    ask = choose(engine, task, raw=raw)
    chosen = [examples[i] for i in np.unique(np.linspace(0, len(examples) - 1, REQUESTS).astype(int))]
    taken: list[float] = []
    sample = [*chosen[:_WARM_UP], *chosen]
    for number, example in enumerate(sample):
        progress("latency", number, len(sample))
        start = time.perf_counter()
        try:
            ask([example], _quiet)
        except InputError:  # an input over the context, recorded as such by the evaluation itself
            continue
        if number >= min(_WARM_UP, len(chosen)):
            taken.append(time.perf_counter() - start)
    progress("latency", len(sample), len(sample))
    if not taken:
        return {"p50_s": None, "p95_s": None, "requests": 0}
    return {
        "p50_s": float(np.quantile(taken, 0.5)),
        "p95_s": float(np.quantile(taken, 0.95)),
        "requests": len(taken),
    }


def one_by_one(info: EngineInfo) -> bool:
    """Whether an engine answers one question after the other, so that records hold each answer's own time."""
    return bool(dict(info.meta).get("one_by_one"))


def of_records(records: Sequence[Record]) -> dict[str, Any]:
    """The same figures, and the 99th percentile, over all records of an engine that answers ``one_by_one``."""
    taken = [record.latency_s for record in records if not record.error]
    if not taken:
        return {"p50_s": None, "p95_s": None, "requests": 0}
    shares = {f"p{round(100 * share)}_s": float(np.quantile(taken, share)) for share in (0.5, 0.95, 0.99)}
    return {**shares, "requests": len(taken)}


def _quiet(stage: str, done: int, total: int) -> None:
    """A single request has no progress to draw."""


def weights_mb(store: Store, info: EngineInfo) -> float | None:
    """Weights that the engine holds in memory, in MB (10^6 bytes): what it says itself, else the size of their files.

    None for models that are not in the store (a remote API holds them, not this machine).
    """
    told = dict(info.meta).get("weights_mb")
    if told is not None:
        return float(told)
    try:
        record = find(store, info.model)
        while record.kind == "endpoint":
            record = find(store, str(record.meta.get("target", "")))
    except NotFoundError:
        return None
    own = _weight_bytes(store, record)
    if record.kind != "adapter" or record.base is None or record.meta.get("saves") == "weights":
        return own / 1e6
    return (own + _weight_bytes(store, find(store, record.base))) / 1e6


def _weight_bytes(store: Store, record: ModelRecord) -> int:
    return sum(size for name, size in files(store, record.digest).items() if name.endswith(_WEIGHTS))
