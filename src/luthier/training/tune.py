"""``luthier tune``: from a configuration to a trained model in the store, with everything that led to it on record."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.config import Document
from luthier.core.dataset import Dataset, Splits
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, StoreError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import MetricSink, Progress, Run, RunStatus, no_progress
from luthier.core.task import PromptTemplate
from luthier.store import runs
from luthier.store.artifacts import put, staged
from luthier.store.database import Store, open_store
from luthier.store.lineage import Node, record_edge
from luthier.store.models import check_name, find, register
from luthier.training.claim import claim
from luthier.training.follow import Followed, followed
from luthier.training.from_scratch import Advice, advice
from luthier.training.interrupt import Halt
from luthier.training.prepare import prepare
from luthier.training.resolve import Job, resolve
from luthier.training.sources import leaked

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel
    from luthier.training.loop import Outcome
    from luthier.training.preflight import Prediction
    from luthier.training.shared import Shared
    from luthier.training.work import Work

Scorer = Callable[["LoadedModel"], Mapping[str, float]]


@dataclass(frozen=True)
class TuneResult:
    """The run, the model that it made, and the run's summary. ``reused``: the same work had been done before."""

    run: Run
    model: ModelRecord
    summary: Mapping[str, Any]
    reused: bool = False


@dataclass(frozen=True)
class Start:
    """What is about to be trained, told before the first step. ``serving``: engine -> swap, merge or no. ``advice`` is on new models."""

    job: Job
    run: Run
    rows: int
    validation_rows: int
    trainable_parameters: int
    total_parameters: int
    resumed_at: int
    serving: Mapping[str, str]
    dropped: int = 0
    truncated: int = 0
    predicted: Prediction | None = None
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of each data source its rows, validation rows and share of the first epoch."""
    advice: Advice | None = None
    leaked: int = 0
    """Validation rows of a source that another source trains on."""


def tune(
    config: str | Path | Mapping[str, Any] | Document,
    overrides: Iterable[str] = (),
    *,
    splits: Splits | None = None,
    prompt: PromptTemplate | None = None,
    scorer: Scorer | None = None,
    store: Store | None = None,
    metrics: MetricSink | None = None,
    progress: Progress = no_progress,
    started: Callable[[Start], None] | None = None,
    resume: bool = True,
    replace: bool = False,
    shared: Shared | None = None,
) -> TuneResult:
    """Train a model as ``config`` (a YAML file or its values) says and register it.

    ``splits`` and ``prompt`` replace the sections of the same purpose. ``scorer`` adds validation metrics, computed on the model as it
    is at each validation. The same work is done once: a finished run is returned as it is, an interrupted one goes on at its
    last checkpoint (``resume=False`` starts anew). ``replace`` lets the result take a name that another model has. ``shared`` is what this
    process's trainings have in common; the result is the same without it.

    Raises InputError and its kin for what cannot work, before anything is trained; ConflictError when another process tunes the same
    name; TrainingError, StoreError; KeyboardInterrupt after Ctrl-C, with a checkpoint; Halt when ``metrics`` raised it.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UnsupportedError(
            f"tune starts its processes itself; the environment says WORLD_SIZE={os.environ['WORLD_SIZE']}",
            hint="start it without torchrun or accelerate launch: train.processes=auto is one process a GPU",
        )
    store = store or open_store()
    overrides = tuple(overrides)
    job = resolve(config, overrides, store, splits=splits, prompt=prompt, progress=progress)
    helped = followed(job, None if splits is not None or prompt is not None else config, overrides)
    with claim(store, job.name):
        before = earlier(store, job) if resume else None
        if isinstance(before, TuneResult):
            return before
        if not replace:
            require_free_name(store, job)
        if before is not None:
            run = runs.resume(store, before.id)
        else:
            from luthier.training.preflight import outline, shape_of

            # a method that cannot go in, or an optimizer that is for other parameters, says so before a weight is read
            shape_of(outline(store, job, shared), job.config.train)
            run = runs.start(store, "tune", job.name, job.values(), job.origins, job.key)
        try:
            record, summary = _execute(
                store,
                job,
                run,
                scorer=scorer,
                metrics=metrics,
                progress=progress,
                started=started,
                replace=replace,
                shared=shared,
                helped=helped,
            )
        except Halt as halt:
            _end(store, run, "interrupted", f"given up: {halt}")
            halt.run = run.id
            raise
        except KeyboardInterrupt:
            _end(store, run, "interrupted", "interrupted")
            raise
        except Exception as error:
            shown = error.message if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"
            _end(store, run, "failed", shown)
            raise
        return TuneResult(runs.finish(store, run.id, "done", summary), record, summary)


def _end(store: Store, run: Run, status: RunStatus, why: str) -> None:
    """Note how a run ended. A disk that is full takes no note, and must not hide why; ``runs.recover`` finds the dead process later."""
    with suppress(StoreError):
        runs.finish(store, run.id, status, {"error": why})


def earlier(store: Store, job: Job) -> TuneResult | Run | None:
    """The finished result of the same work, else a run of it that can go on."""
    runs.recover(store)
    unfinished = None
    for run in runs.by_key(store, job.key):
        if run.status == "done":
            try:
                record = find(store, job.name)
            except NotFoundError:
                continue
            if record.run_id == run.id:
                return TuneResult(run, record, run.summary, reused=True)
        elif unfinished is None:
            unfinished = run
    return unfinished


def require_free_name(store: Store, job: Job) -> None:
    """Raise ConflictError when another model has the name of the result, or of a task of it."""
    for name in job.names:
        try:
            taken = find(store, check_name(name))
        except NotFoundError:
            continue
        raise ConflictError(
            f"the name {name!r} is taken by another {taken.kind} (made {taken.created_at[:10]}, with other settings or data)",
            hint="choose another: name=OTHER, or replace it: --force",
        )


def _execute(
    store: Store,
    job: Job,
    run: Run,
    *,
    scorer: Scorer | None,
    metrics: MetricSink | None,
    progress: Progress,
    started: Callable[[Start], None] | None,
    replace: bool,
    shared: Shared | None,
    helped: Followed | None,
) -> tuple[ModelRecord, dict[str, Any]]:
    """Load, train, save, register. Heavy imports happen here."""
    from luthier.models.checkpointing import checkpointed
    from luthier.models.fast import speed_up
    from luthier.training import checkpoint, preflight
    from luthier.training.loop import train
    from luthier.training.memory import peak_mb, reset_peak
    from luthier.training.work import lengths_of

    folder = runs.folder(store, run.id)
    point = checkpoint.latest(folder)
    prepared = prepare(store, job, progress, shared)
    model, work, validation = prepared.model, prepared.training, prepared.validation
    lengths = [lengths_of(each.rows) if each else () for each in (work, validation)]
    trainable, total = _parameter_counts(model)
    after = job.objective.entry.optional("after")
    trains = bool(trainable) or after is None  # else the objective makes its result of the rows alone
    predicted = (
        preflight.predict(store, job, model, *lengths, layout=work.layout) if len(work.rows) and trains else None
    )
    reset_peak(model.device)
    start = Start(
        job,
        run,
        len(work.rows),
        len(validation.rows) if validation else 0,
        trainable,
        total,
        point.position.step if point else 0,
        job.serving,
        prepared.dropped,
        prepared.truncated,
        predicted,
        _told_sources(work, validation),
        advice(job.base, predicted.tokens, sum(lengths[0])) if predicted is not None else None,
        leaked(job.sources) if not job.by_source else 0,
    )
    if started is not None:
        started(start)
    _record_inputs(store, job, run)
    with ExitStack() as stack:
        log = stack.enter_context(runs.MetricsLog(folder / runs.METRICS))
        log.truncate_after(start.resumed_at)

        def sink(record: Mapping[str, Any]) -> None:
            log.write(record)
            if metrics is not None:
                metrics(record)

        speed_up(model.module)
        if predicted is not None and predicted.checkpointing:
            stack.enter_context(checkpointed(model.module))
        around = job.method.entry.optional("steps")
        validate = _validator(model, job, validation, scorer)
        if trains:
            if helped is not None:
                recompute = predicted is not None and predicted.checkpointing
                stack.enter_context(
                    helped(store, folder, run=run.id, validates=validate is not None, checkpointing=recompute)
                )
            outcome = train(
                model.module,
                work,
                job.config.train,
                folder=folder,
                metrics=sink,
                validate=validate,
                resume=point,
                progress=progress,
                steps=around(model, job.method.config) if around is not None else None,
            )
        if after is not None:
            after(model, work.rows, job.objective.config, progress)
        if not trains:
            outcome = _untrained(validate)
    record = _save(store, job, run, model, trainable, replace=replace)
    summary = _summary(start, outcome, peak_mb(model.device))
    _draw(folder, job)
    checkpoint.clear(folder)
    return record, summary


def _untrained(validate: Callable[[], Mapping[str, float]] | None) -> Outcome:
    """Of a result that was made without a step."""
    from luthier.training.loop import Outcome

    found = validate() if validate is not None else {}
    return Outcome(0, 0, 0.0, "nothing to train", 0, {f"validation_{name}": value for name, value in found.items()})


def _validator(
    model: LoadedModel, job: Job, validation: Work | None, scorer: Scorer | None
) -> Callable[[], Mapping[str, float]] | None:
    """Loss over the validation rows, and what the scorer says."""
    from luthier.training.work import mean_loss, require_weight

    if validation is None and scorer is None:
        return None
    if validation is not None:
        require_weight(validation.rows, "validation")

    def validate() -> dict[str, float]:
        found: dict[str, float] = {}
        if validation is not None:
            found |= mean_loss(validation, max_tokens=job.config.train.max_tokens_per_batch)
        if scorer is not None:
            found |= scorer(model)
        return found

    return validate


def _told_sources(work: Work, validation: Work | None) -> dict[str, dict[str, Any]]:
    layout = work.layout
    if layout is None:
        return {}
    held = (
        validation.layout.sizes
        if validation is not None and validation.layout is not None
        else (0,) * len(layout.sizes)
    )
    each = zip(layout.names, layout.sizes, held, layout.mixture.shares(layout.sizes), strict=True)
    return {name: {"rows": n, "validation_rows": v, "share": round(share, 4)} for name, n, v, share in each}


def _parameter_counts(model: LoadedModel) -> tuple[int, int]:
    """(trainable, all)."""
    from luthier.models.quantize import unseen

    counts = [(p.numel(), p.requires_grad) for p in model.module.parameters()]
    return sum(n for n, trained in counts if trained), sum(n for n, _ in counts) + unseen(model.module)


def _dataset(dataset: Dataset) -> Node:
    return Node("dataset", dataset.digest, dataset.name)


def _record_inputs(store: Store, job: Job, run: Run) -> None:
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


def _save(store: Store, job: Job, run: Run, model: LoadedModel, trainable: int, *, replace: bool) -> ModelRecord:
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


def _summary(start: Start, outcome: Outcome, peak_mb: float) -> dict[str, Any]:
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


def _draw(folder: Path, job: Job) -> None:
    from luthier.training.curve import draw

    draw(runs.read_metrics(folder / runs.METRICS), folder / "curve.png", title=job.name)
