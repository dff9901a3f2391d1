"""From what an entrant did to its line on the board, and what else a board says: the task, the machine, warnings."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.core.model import ModelRecord
from luthier.core.task import Task
from luthier.data.dedupe import content_key
from luthier.evaluation.result import EvalResult
from luthier.store import runs
from luthier.store.database import Store
from luthier.store.models import find
from luthier.tournament.board import Standing
from luthier.tournament.entry import Entry
from luthier.tournament.prices import per_1000, tokens_per_request
from luthier.tournament.seeds import labels_over_seeds, scores_over_seeds, validation_value
from luthier.tournament.slicing import slices_over_seeds
from luthier.tournament.spaces import applied

_CONFUSED = 5


def standing_of(store: Store, task: Task, entry: Entry) -> Standing:
    """The entrant's line on the board, not ranked yet."""
    planned, entrant = entry.planned, entry.planned.entrant
    common = Standing(
        name=entrant.name,
        way=entrant.way,
        model=entrant.model,
        status="failed",
        reason=entry.failure,
        base_mb=_base_mb(store, planned.base),
        serving=dict(planned.serving),
        target=entrant.model if planned.job is None else "",
        settings=_settings(entry),
        trials=tuple(trial.as_dict() for trial in entry.trials),
        chosen=dict(entry.chosen),
        spent=entry.spent.as_dict() if entry.trained or entry.trials else {},
        repeats=entry.repeats.as_dict() if len(entry.trained) > 1 else {},
        predicted=entry.predicted.as_dict() if entry.predicted is not None else {},
        **_cost(store, entry),
    )
    if entry.trained:
        chosen = entry.trained[entry.best]
        common = replace(common, tune_run=chosen.run, target=chosen.target)
    results = entry.scored
    return _scored(store, task, entry, common, results) if results else common


def _scored(store: Store, task: Task, entry: Entry, common: Standing, results: Sequence[EvalResult]) -> Standing:
    best = results[entry.best]
    ran = json.loads((runs.folder(store, best.run.id) / "config.json").read_text(encoding="utf-8"))["values"]
    digests = {k.removesuffix("_digest"): v for k, v in ran["engine"].items() if k.endswith("_digest") and v}
    scores = scores_over_seeds(task, results)
    confused: Counter[tuple[str, str]] = Counter()
    for result in results:
        confused.update({(target, answer): count for target, answer, count in result.confused(50)})
    prompt_tokens, completion_tokens = tokens_per_request(best.records)
    request_s = best.latency.get("p50_s")
    return replace(
        common,
        status="done",
        reason="",
        score=scores[best.primary],
        scores=scores,
        labels=labels_over_seeds(results),
        confused=[[*pair, count] for pair, count in sorted(confused.items(), key=lambda c: (-c[1], c[0]))[:_CONFUSED]],
        counts=dict(best.counts),
        latency_p50_s=request_s,
        latency_p95_s=best.latency.get("p95_s"),
        weights_mb=best.memory.get("weights_mb"),
        eval_run=best.run.id,
        settings={**common.settings, "engine": ran["engine"]["name"], "strategy": ran["strategy"]},
        digests=digests,
        seeds=_seed_lines(entry, results) if len(results) > 1 else (),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        price_per_1000=per_1000(
            entry.planned.entrant.model,
            entry.planned.settings,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            request_s=request_s,
        ),
        slices=slices_over_seeds(results),
    )


def _seed_lines(entry: Entry, results: Sequence[EvalResult]) -> list[dict[str, Any]]:
    assert entry.planned.job is not None
    metric = entry.planned.job.config.train.metric
    return [
        {
            "seed": trained.seed,
            "value": result.score,
            "validation": validation_value(trained.summary, metric),
            "target": trained.target,
            "tune_run": trained.run,
            "eval_run": result.run.id,
            "promoted": place == entry.best,
        }
        for place, (trained, result) in enumerate(zip(entry.trained, results, strict=True))
    ]


def _settings(entry: Entry) -> dict[str, Any]:
    entrant, job = entry.planned.entrant, entry.planned.job
    out: dict[str, Any] = {"engine": entrant.engine, **({"strategy": entrant.strategy} if entrant.strategy else {})}
    if job is not None:
        parts = {part: value for part, value in job.values().items() if part in ("method", "objective", "train")}
        out |= applied(parts, entry.chosen)
        if entrant.search is not None:
            out["search"] = entrant.search.model_dump(exclude_none=True)
    return out


def _cost(store: Store, entry: Entry) -> dict[str, Any]:
    """What training took and left behind, this tournament's or an earlier one's."""
    base = entry.planned.base
    while base is not None and base.kind == "endpoint":
        base = find(store, str(base.meta.get("target", "")))
    if entry.planned.job is None:
        made = base.meta.get("trainable_parameters", 0) if base is not None and base.kind == "adapter" else 0
        return {"trainable_parameters": made, "artifact_mb": base.size_bytes / 1e6 if made and base else 0.0}
    if not entry.trained:
        return {"trainable_parameters": None}
    trained = entry.trained[entry.best]
    tuned = trained.summary
    return {
        "trainable_parameters": tuned.get("trainable_parameters"),
        "total_parameters": tuned.get("total_parameters"),
        "train_s": tuned.get("train_s"),
        "train_peak_mb": tuned.get("peak_mb"),
        "artifact_mb": find(store, trained.target).size_bytes / 1e6,
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
