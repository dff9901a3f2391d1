"""``luthier tune``: from a configuration to a trained model in the store, with everything that led to it on record."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.config import Document
from luthier.core.dataset import Splits
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, StoreError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import MetricSink, Progress, Run, RunStatus, no_progress
from luthier.core.task import PromptTemplate
from luthier.store import runs
from luthier.store.database import Store, open_store
from luthier.store.models import check_name, find
from luthier.training.claim import claim
from luthier.training.follow import Followed, followed
from luthier.training.from_scratch import Advice, advice
from luthier.training.interrupt import Halt
from luthier.training.prepare import Prepared, prepare
from luthier.training.resolve import Job, resolve
from luthier.training.result import draw_curve, record_inputs, save, summary_of
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
    if scorer is not None and job.config.train.shard == "on":
        raise UnsupportedError(
            "a scorer runs in one process, and with train.shard=on none has the whole model", hint="train.shard=off"
        )
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
            from luthier.training.cost import shape_of
            from luthier.training.preflight import outline

            # a method that cannot go in, or an optimizer that is for other parameters, says so before a weight is read
            shape_of(outline(store, job, shared), job.config.train)
            run = runs.start(store, "tune", job.name, job.values(), job.origins, job.key)
        with _ended(store, run):
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
        return TuneResult(runs.finish(store, run.id, "done", summary), record, summary)


@contextmanager
def _ended(store: Store, run: Run) -> Iterator[None]:
    """What ends the run before it is done is on its record."""
    try:
        yield
    except Halt as halt:
        _end(store, run, "interrupted", f"given up: {halt}")
        halt.run = run.id
        raise
    except KeyboardInterrupt:
        _end(store, run, "interrupted", "interrupted")
        raise
    except Exception as error:
        _end(
            store,
            run,
            "failed",
            error.message if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}",
        )
        raise


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
    from luthier.training import checkpoint
    from luthier.training.loop import train
    from luthier.training.memory import give_back, peak_mb, reset_peak
    from luthier.training.shard import sharded

    folder = runs.folder(store, run.id)
    point = checkpoint.latest(folder)
    prepared = prepare(store, job, progress, shared)
    give_back()  # what the rows, and what the objective asked the untrained model, took and left
    model, work, validation = prepared.model, prepared.training, prepared.validation
    after = job.objective.entry.optional("after")
    trainable, _ = _parameter_counts(model)
    trains = bool(trainable) or after is None  # else the objective makes its result of the rows alone
    start = _start(store, job, run, prepared, point.position.step if point else 0, trains=trains)
    predicted = start.predicted
    reset_peak(model.device)
    if started is not None:
        started(start)
    record_inputs(store, job, run)
    with ExitStack() as stack:
        sink = stack.enter_context(_logged(folder, start.resumed_at, metrics))
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
            shards = None
            if helped is not None and job.config.train.shard == "on":
                shards = stack.enter_context(sharded(model, job.config.train.device))
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
                shards=shards,
            )
        if after is not None:
            after(model, work.rows, job.objective.config, progress)
        if not trains:
            outcome = _untrained(validate)
    record = save(store, job, run, model, trainable, replace=replace)
    summary = summary_of(start, outcome, peak_mb(model.device))
    draw_curve(folder, job)
    checkpoint.clear(folder)
    return record, summary


def _start(store: Store, job: Job, run: Run, prepared: Prepared, resumed_at: int, *, trains: bool) -> Start:
    """What is told before the first step."""
    from luthier.training import preflight
    from luthier.training.work import lengths_of

    model, work, validation = prepared.model, prepared.training, prepared.validation
    lengths = [lengths_of(each.rows) if each else () for each in (work, validation)]
    predicted = (
        preflight.predict(store, job, model, *lengths, layout=work.layout) if len(work.rows) and trains else None
    )
    trainable, total = _parameter_counts(model)
    return Start(
        job,
        run,
        len(work.rows),
        len(validation.rows) if validation else 0,
        trainable,
        total,
        resumed_at,
        job.serving,
        prepared.dropped,
        prepared.truncated,
        predicted,
        _told_sources(work, validation),
        advice(job.base, predicted.tokens, sum(lengths[0])) if predicted is not None else None,
        leaked(job.sources) if not job.by_source else 0,
    )


@contextmanager
def _logged(folder: Path, resumed_at: int, metrics: MetricSink | None) -> Iterator[MetricSink]:
    """Records go into the run's log, which goes on after step ``resumed_at``, and to ``metrics``."""
    with runs.MetricsLog(folder / runs.METRICS) as log:
        log.truncate_after(resumed_at)

        def sink(record: Mapping[str, Any]) -> None:
            log.write(record)
            if metrics is not None:
                metrics(record)

        yield sink


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
