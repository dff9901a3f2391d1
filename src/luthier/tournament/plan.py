"""What a tournament is going to do: entrants looked up and checked, their trainings configured, memory and time predicted. No weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError, LuthierError, NotFoundError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.run import Progress, no_progress
from luthier.core.task import Task
from luthier.knowledge.measure import state_digest
from luthier.store.database import Store, open_store
from luthier.store.models import find
from luthier.tasks.own import Config as TaskConfig
from luthier.tasks.own import build, read_config
from luthier.tournament.budget import limits
from luthier.tournament.documents import open_documents, read_documents, shown_passages
from luthier.tournament.entrant import Entrant, choose_only, read_entrants
from luthier.tournament.entry import Planned
from luthier.tournament.settings import Settings, read_settings
from luthier.tournament.spaces import Choice, Range, applied, default_space, grid_size, read_space
from luthier.tournament.trainer import training_splits

if TYPE_CHECKING:
    from luthier.knowledge.base import KnowledgeBase
    from luthier.training.preflight import Prediction
    from luthier.training.resolve import Job
    from luthier.training.shared import Shared

_REMOTE = ("fake", "openai")
_QUARTERS = 4  # validations that halving needs, when a training has fewer epochs


@dataclass(frozen=True)
class Plan:
    """A tournament, resolved: the task file's values, the task, the entrants, and the knowledge base that some answer from."""

    config: TaskConfig
    task: Task
    settings: Settings
    entrants: Sequence[Planned]
    origins: Mapping[str, str]
    base: str = ""


def read_plan(
    path: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    engine: str = "auto",
    only: Sequence[str] = (),
    store: Store | None = None,
    progress: Progress = no_progress,
) -> Plan:
    """Read a task file and look up all that it names, without loading weights.

    Raises InputError, NotFoundError or DataError for what cannot work, naming the entrant.
    """
    store = store or open_store()
    config, document = read_config(path, list(overrides))
    settings = read_settings(config, document.origins)
    task = build(config)
    entrants = read_entrants(config, task.kind, engine=engine, origins=document.origins, search=settings.search)
    chosen = choose_only(entrants, only)
    documents = read_documents(config)
    if documents is None or all(entrant.rag is None for entrant in chosen):
        planned = [plan_entrant(store, task, entrant, settings) for entrant in chosen]
        return Plan(config, task, settings, planned, dict(document.origins))
    with open_documents(store, documents, task.name, progress) as base:
        planned = [plan_entrant(store, task, entrant, settings, base, progress) for entrant in chosen]
    return Plan(config, task, settings, planned, dict(document.origins), base.name)


def plan_entrant(
    store: Store,
    task: Task,
    entrant: Entrant,
    settings: Settings,
    documents: KnowledgeBase | None = None,
    progress: Progress = no_progress,
) -> Planned:
    """Look everything up and check it, the corners of its search space too."""
    if entrant.rag is not None and documents is not None:
        shown = None
        if entrant.method is not None:
            length = int(find(store, entrant.model).meta.get("context_length") or 0)
            shown = shown_passages(task, documents, entrant.rag, progress, context_length=length)
        planned = plan_entrant(store, shown or task, replace(entrant, rag=None), settings)
        return replace(planned, entrant=entrant, documents=state_digest(documents), task=shown)
    try:
        if entrant.method is None:
            record = _stored(store, entrant.model)
            if record is not None and record.kind == "adapter":
                _require_served(entrant.engine, record.meta.get("serving"), record.name)
            return Planned(entrant, record, settings=settings)
        job = _resolve(store, task, entrant.tune_config())
        _require_served(entrant.engine, job.serving, f"the result of method {job.method.entry.name}")
        space = _space(entrant, job)
        planned = Planned(entrant, job.base, job, settings, space)
        for key, dimension in space.items():
            for value in dimension.samples():
                _resolve(store, task, configuration(planned, {key: value}))
        return Planned(entrant, job.base, _resolve(store, task, configuration(planned)), settings, space)
    except LuthierError as error:
        raise type(error)(f"entrant {entrant.name}: {error.message}", hint=error.hint) from error


def _require_served(engine: str, serving: Mapping[str, str] | None, what: str) -> None:
    """Raise UnsupportedError when the engine that an entrant names cannot answer with what it trains or is."""
    if engine != "auto" and serving and serving.get(engine, "no") == "no":
        able = [name for name, way in serving.items() if way != "no"]
        raise UnsupportedError(
            f"{what} cannot be served by engine {engine}; it can by {', '.join(able) or 'none'}",
            hint=f"--engine {able[0]}, or engine: {able[0]} in the entrant"
            if able
            else "choose another method: luthier methods",
        )


def _resolve(store: Store, task: Task, config: Mapping[str, Any]) -> Job:
    from luthier.training.resolve import resolve

    return resolve(config, (), store, splits=training_splits(task), prompt=task.prompt)


def _stored(store: Store, model: str) -> ModelRecord | None:
    """The stored model, None for a name that an engine opens by itself (``openai:...``, ``fake``)."""
    try:
        return find(store, model)
    except NotFoundError:
        if model.partition(":")[0] in _REMOTE:
            return None
        raise


def _space(entrant: Entrant, job: Job) -> dict[str, Range | Choice]:
    search = entrant.search
    if search is None:
        return {}
    if not len(job.splits.validation):
        raise InputError(
            "a search judges its trials on validation rows, and there are none",
            hint="for example data.split.validation=0.1",
        )
    if search.space:
        space = read_space(search.space, "search")
    else:
        space = default_space(job.method.entry, job.method.config.model_dump(), job.config.train.model_dump())
    if search.sampler == "grid":
        grid_size(space)
    metric = search.metric or job.config.train.metric
    if "loss" in metric and any(key.startswith("objective.") for key in space):
        raise InputError(
            f"the space varies the objective, and {metric} of one objective says nothing about another's",
            hint="search.metric=validation_accuracy, or another that does not depend on it",
        )
    return space


def configuration(
    planned: Planned, changes: Mapping[str, Any] | None = None, seed: int | None = None
) -> dict[str, Any]:
    """What ``tune`` is told for one training: dotted ``changes``, the seed, and its share of the budget."""
    settings, search = planned.settings, planned.entrant.search
    config = applied(planned.entrant.tune_config(), changes or {})
    train: dict[str, Any] = dict(config.get("train", {}))
    if seed is None and settings.seeds:
        seed = settings.seeds[0]
    if seed is not None:
        train["seed"] = seed
    train |= limits(settings.budget, trials_of(planned), train)
    if search is not None:
        train.setdefault("metric", search.metric or "validation_loss")
        if search.pruner == "halving" and "validate_every" not in train:
            train["validate_every"] = _validate_every(planned, train)
    return config | ({"train": train} if train else {})


def trials_of(planned: Planned) -> int:
    """How many trials its search has; 1 without a search."""
    search = planned.entrant.search
    if search is None:
        return 1
    return min(search.trials, grid_size(planned.space)) if search.sampler == "grid" and planned.space else search.trials


def _validate_every(planned: Planned, train: Mapping[str, Any]) -> int:
    """Steps between validations: an epoch, or a quarter of the training where that is shorter."""
    assert planned.job is not None
    known = planned.job.config.train.model_dump() | dict(train)
    epoch: int = math.ceil(len(planned.job.splits.train) / known["batch_size"])
    steps: int = math.ceil(known["epochs"] * epoch)
    if known["max_steps"] is not None:
        steps = min(steps, known["max_steps"])
    return max(1, min(epoch, math.ceil(steps / _QUARTERS)))


def defaults(planned: Planned) -> dict[str, Any]:
    """The values that the space's settings have without a search."""
    assert planned.job is not None
    values = planned.job.values()
    return {key: values[key.split(".", 1)[0]].get(key.split(".", 1)[1]) for key in planned.space}


def look_ahead(store: Store, planned: Planned, shared: Shared | None = None) -> Prediction | None:
    """Memory and time of one of its trainings; None when nothing is trained. ``shared`` keeps the rows for the training."""
    if planned.job is None:
        return None
    from luthier.training.preflight import look_ahead as predict

    return predict(store, planned.job, shared)
