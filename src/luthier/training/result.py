"""What a training leaves: the stored model with what is said of it, the lineage, the run's summary and its picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.dataset import Dataset
from luthier.core.model import ModelRecord
from luthier.core.run import Run
from luthier.store import runs
from luthier.store.artifacts import put, staged
from luthier.store.database import Store
from luthier.store.lineage import Node, record_edge
from luthier.store.models import find, register
from luthier.training.resolve import Job

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel
    from luthier.training.loop import Outcome
    from luthier.training.tune import Start


def _dataset(dataset: Dataset) -> Node:
    return Node("dataset", dataset.digest, dataset.name)


def record_inputs(store: Store, job: Job, run: Run) -> None:
    """Lineage: data and base went into the run."""
    made_by = Node("run", run.id, job.name)
    record_edge(store, Node("model", job.base.name), "base", made_by)
    for part in job.parts:
        record_edge(store, Node("model", part["name"]), "built on", made_by)
    for what, record in job.reads.items():
        node = _dataset(record) if isinstance(record, Dataset) else Node("model", record.name)
        record_edge(store, node, what, made_by)
    relations: tuple[Literal["train", "validation"], ...] = ("train", "validation")
    for relation in relations:
        for dataset in job.datasets(relation):
            if len(dataset):
                record_edge(store, _dataset(dataset), relation, made_by)
    runs.record_trained_on(store, run.id, job.splits.train.ids())


def save(store: Store, job: Job, run: Run, model: LoadedModel, trainable: int, *, replace: bool) -> ModelRecord:
    """Write the weights into the store, register the name, record where it came from; so for each task where the objective makes several."""
    results = job.objective.entry.optional("results")
    if results is None:
        return _save_one(store, job, run, model, trainable, {"prompt": _prompt(job)}, replace=replace)
    made: dict[str, ModelRecord] = {}
    for task, told in results(model, job.splits.train, job.prompt, job.objective.config):
        one = {**told, "task": task, "body": made[""].digest} if task else {**told, "tasks": list(job.names[1:])}
        made[task] = _save_one(store, job, run, model, trainable, one, replace=replace)
    return made[""]


def _save_one(
    store: Store, job: Job, run: Run, model: LoadedModel, trainable: int, told: Mapping[str, Any], *, replace: bool
) -> ModelRecord:
    """One model. ``told`` has its prompt; of a task the name, the objective, and the artifact of the body that it shares."""
    from luthier.models.attach import save_trained

    task, objective = told.get("task"), told.get("objective") or job.objective.as_dict()
    saves = job.method.entry.module.SAVES
    manifest = {
        "saves": saves,
        "prompt": told["prompt"],
        "method": job.method.as_dict(),
        "objective": objective,
        "run_id": run.id,
    }
    with staged(store) as folder:
        save_trained(model, folder, manifest)
        digest, size = put(store, folder, beside=told.get("body"))
    record = ModelRecord(
        name=f"{job.name}-{task}" if task else job.name,
        kind="adapter",
        architecture=job.base.architecture,
        digest=digest,
        size_bytes=size,
        licence=job.base.licence,
        base=job.base.name,
        run_id=run.id,
        meta=meta_of(job, model, trainable)
        | {"prompt": told["prompt"], "objective": objective["name"]}
        | {key: told[key] for key in ("task", "tasks") if key in told},
    )
    register(store, record, replace=replace)
    record_edge(store, Node("run", run.id, job.name), "made", Node("model", record.name))
    return find(store, record.name)


def _prompt(job: Job) -> dict[str, Any] | None:
    """The prompt that the result must be asked with."""
    plain = job.base.architecture == "encoder" or job.kind in ("chat", "preference", "text")
    if plain:
        return None
    asked = job.objective.entry.optional("asked")
    return (asked(job.prompt, job.objective.config) if asked is not None else job.prompt).as_dict()


def meta_of(job: Job, model: LoadedModel, trainable: int) -> dict[str, Any]:
    """What the store says of the result of ``job``; ``model`` may be a sketch of it."""
    return {
        "method": job.method.entry.name,
        "objective": job.objective.entry.name,
        "saves": job.method.entry.module.SAVES,
        **_of_head(model),
        "serving": dict(job.serving),
        "prompt": _prompt(job),
        **({"parts": [dict(part) for part in job.parts]} if job.parts else {}),
        "labels": list(model.labels),
        "template_digest": model.template_digest,
        "context_length": model.context_length,
        "trainable_parameters": trainable,
    }


def _of_head(model: LoadedModel) -> dict[str, Any]:
    """What a record says of a head without labels: that it scores texts, or what it answers with."""
    from luthier.models.heads import answers_of

    if model.head is None or model.labels:
        return {}
    return {"answers": answers_of(model.head)} if answers_of(model.head) else {"scores": True}


def summary_of(start: Start, outcome: Outcome, peak_mb: float) -> dict[str, Any]:
    """What a run tells of itself when it is done."""
    best = {name: round(value, 6) for name, value in outcome.best.items()}
    return {
        "model": start.job.name,
        "rows": start.rows,
        "dropped_rows": start.dropped,
        "truncated_rows": start.truncated,
        "trainable_parameters": start.trainable_parameters,
        "total_parameters": start.total_parameters,
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "train_s": round(outcome.train_s, 3),
        "elapsed_s": round(outcome.elapsed_s, 3),
        "tokens_per_s": round(outcome.tokens / outcome.train_s, 1) if outcome.train_s else 0.0,
        "peak_mb": round(peak_mb, 1),
        "checkpointing": start.predicted is not None and start.predicted.checkpointing,
        "ended": outcome.ended,
        "best_step": outcome.best_step,
        **best,
        **({"sources": start.sources, "leaked_rows": start.leaked} if start.sources else {}),
        **({"models": list(start.job.names)} if start.job.by_source else {}),
        **({"predicted": _against(start, outcome, peak_mb)} if start.predicted is not None else {}),
    }


def _against(start: Start, done: Outcome, peak_mb: float) -> dict[str, Any]:
    from luthier.training.preflight import outcome

    assert start.predicted is not None
    return outcome(
        start.predicted,
        start.job,
        peak_mb=peak_mb,
        train_s=done.train_s,
        steps=done.steps,
    )


def draw_curve(folder: Path, job: Job) -> None:
    """The picture of the run's metrics."""
    from luthier.training.curve import draw

    draw(runs.read_metrics(folder / runs.METRICS), folder / "curve.png", title=job.name)
