"""From what an entrant did to its line on the board, and what else a board says: the task, the machine, warnings."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.model import ModelRecord
from luthier.core.task import Task
from luthier.data.dedupe import content_key
from luthier.evaluation.result import EvalResult
from luthier.store import runs
from luthier.store.database import Store
from luthier.store.models import find
from luthier.tournament.board import Standing
from luthier.tournament.entrant import Entrant

if TYPE_CHECKING:
    from luthier.training.resolve import Job


@dataclass(frozen=True)
class Planned:
    """An entrant with what is known before it runs. ``base`` is None for models that are not in the store."""

    entrant: Entrant
    base: ModelRecord | None
    job: Job | None = None

    @property
    def serving(self) -> Mapping[str, str]:
        """Engine -> swap, merge or no: where its result can be served; empty when nothing is trained."""
        return self.job.serving if self.job is not None else {}

    @property
    def key(self) -> list[Any]:
        """What makes its work equal to other work."""
        return [self.entrant.as_dict(), self.base.digest if self.base else "", self.job.key if self.job else ""]


@dataclass
class Entry:
    """How far an entrant has come. ``failure`` is the reason why it went no further."""

    planned: Planned
    target: str = ""
    tune_run: str = ""
    tuned: Mapping[str, Any] = field(default_factory=dict)
    eval_run: str = ""
    result: EvalResult | None = None
    failure: str = ""

    @property
    def name(self) -> str:
        """The entrant's name."""
        return self.planned.entrant.name


def standing_of(store: Store, entry: Entry) -> Standing:
    """The entrant's line on the board, not ranked yet."""
    planned, entrant = entry.planned, entry.planned.entrant
    settings: dict[str, Any] = {
        "engine": entrant.engine,
        **({"strategy": entrant.strategy} if entrant.strategy else {}),
    }
    if planned.job is not None:
        settings |= {
            part: value for part, value in planned.job.values().items() if part in ("method", "objective", "train")
        }
    common = Standing(
        name=entrant.name,
        way=entrant.way,
        model=entrant.model,
        status="failed",
        reason=entry.failure,
        base_mb=_base_mb(store, planned.base),
        serving=dict(planned.serving),
        tune_run=entry.tune_run,
        target=entry.target,
        settings=settings,
        **_cost(store, entry),
    )
    result = entry.result
    if result is None:
        return common
    ran = json.loads((runs.folder(store, result.run.id) / "config.json").read_text(encoding="utf-8"))["values"]
    digests = {k.removesuffix("_digest"): v for k, v in ran["engine"].items() if k.endswith("_digest") and v}
    return replace(
        common,
        status="done",
        reason="",
        score=dict(result.scores[result.primary]),
        scores=dict(result.scores),
        labels=dict(result.labels),
        confused=[list(item) for item in result.confused()],
        counts=dict(result.counts),
        latency_p50_s=result.latency.get("p50_s"),
        latency_p95_s=result.latency.get("p95_s"),
        weights_mb=result.memory.get("weights_mb"),
        eval_run=result.run.id,
        settings=settings | {"engine": ran["engine"]["name"], "strategy": ran["strategy"]},
        digests=digests,
    )


def _cost(store: Store, entry: Entry) -> dict[str, Any]:
    """What training took and left behind, this tournament's or an earlier one's."""
    base = entry.planned.base
    while base is not None and base.kind == "endpoint":
        base = find(store, str(base.meta.get("target", "")))
    if entry.planned.job is None:
        made = base.meta.get("trainable_parameters", 0) if base is not None and base.kind == "adapter" else 0
        return {"trainable_parameters": made, "artifact_mb": base.size_bytes / 1e6 if made and base else 0.0}
    if not entry.tune_run:
        return {"trainable_parameters": None}
    tuned = entry.tuned
    return {
        "trainable_parameters": tuned.get("trainable_parameters"),
        "total_parameters": tuned.get("total_parameters"),
        "train_s": tuned.get("train_s"),
        "train_peak_mb": tuned.get("peak_mb"),
        "artifact_mb": find(store, entry.target).size_bytes / 1e6,
    }


def _base_mb(store: Store, record: ModelRecord | None) -> float | None:
    if record is None:
        return None
    while record.kind != "base" and (record.base or record.meta.get("target")):
        record = find(store, str(record.base or record.meta.get("target")))
    return record.size_bytes / 1e6


def about(task: Task) -> dict[str, Any]:
    """The task, as the board states it."""
    return {
        "name": task.name,
        "kind": task.kind,
        "digest": task.digest,
        "splits_digest": task.splits.digest,
        "sizes": {part: len(task.examples(part)) for part in ("train", "validation", "test")},
        "labels": list(task.labels),
        "prompt": task.prompt.as_dict(),
        "scorers": [list(pair) for pair in task.scorers],
    }


def notes(task: Task) -> list[str]:
    """What a reader of the board should know before trusting it."""
    seen = {content_key(e) for part in ("train", "validation") for e in task.examples(part)}
    test = task.examples("test")
    shared = sum(content_key(e) in seen for e in test)
    out = []
    if shared:
        out.append(
            f"{shared} of the {len(test)} test inputs also occur in train or validation: scores of trained entrants are too high."
        )
    if len(test) < 50:
        out.append(f"Only {len(test)} test examples: intervals are wide, and most true differences cannot be seen.")
    return out


def environment() -> dict[str, Any]:
    """The machine and the versions, as far as others should know them."""
    known = runs.environment()
    return {
        "processor": _processor(),
        "threads": os.cpu_count() or 1,
        "platform": known["platform"],
        "python": known["python"],
        "packages": {k: v for k, v in known["packages"].items() if v},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.machine()
    return platform.processor() or platform.machine()
