"""Several trainings in one YAML, each on what an earlier one made: sft, then a reward model, then ppo (Ouyang et al. 2022, figure 2).

    model: smollm2-135m            # sections at the top are every step's, unless it says otherwise
    method: {name: lora, rank: 16}
    steps:
      sft:    {data: {train: chats.jsonl}, objective: sft}
      reward: {model: steps.sft, data: {train: pairs.jsonl}, objective: reward}
      policy: {model: steps.sft, data: {train: prompts.jsonl}, objective: {name: ppo, reward: steps.reward}}

``steps.NAME`` stands for the result of an earlier step, as the model and anywhere in the options of method and objective. Each step is a run of its
own: what is done is not done again, what was interrupted goes on. All steps are checked before the first one trains.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.config import Document, apply_overrides, from_mapping, read_yaml
from luthier.core.errors import InputError, LuthierError, did_you_mean
from luthier.core.model import ModelRecord
from luthier.core.run import MetricSink, Progress, no_progress
from luthier.store.database import Store, open_store
from luthier.store.models import remove
from luthier.training.config import RunConfig
from luthier.training.resolve import Job, resolve
from luthier.training.result import meta_of
from luthier.training.tune import Start, TuneResult, earlier, require_free_name, tune

if TYPE_CHECKING:
    from luthier.training.preflight import Prediction

STEPS = "steps"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_FILES = ("path", "train", "validation", "test", "sources")


@dataclass(frozen=True)
class StepPlan:
    """A step that was checked. ``result``: it was done before. ``predicted`` is what it will take, where it will run."""

    name: str
    job: Job
    result: TuneResult | None = None
    predicted: Prediction | None = None


@dataclass(frozen=True)
class StepResult:
    """A finished step; ``seconds`` with loading and validations, next to nothing where it was done before."""

    name: str
    result: TuneResult
    seconds: float


@dataclass(frozen=True)
class PipelineResult:
    """All steps, in order."""

    steps: tuple[StepResult, ...]

    @property
    def model(self) -> ModelRecord:
        """What the last step made."""
        return self.steps[-1].result.model

    def __getitem__(self, name: str) -> TuneResult:
        """The result of the step called ``name``."""
        for step in self.steps:
            if step.name == name:
                return step.result
        raise InputError(f"step {name!r} is not known. {did_you_mean(name, [step.name for step in self.steps])}")


def is_pipeline(config: str | Path | Mapping[str, Any]) -> bool:
    """Whether a YAML, or its values, has ``steps``."""
    return STEPS in (config if isinstance(config, Mapping) else read_yaml(config).values)


def pipeline(
    config: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    store: Store | None = None,
    metrics: MetricSink | None = None,
    progress: Progress = no_progress,
    started: Callable[[Start], None] | None = None,
    stepping: Callable[[str, int, int], None] | None = None,
    resume: bool = True,
    replace: bool = False,
) -> PipelineResult:
    """Check and run every step of ``config`` in its order, as ``tune`` does. ``stepping`` is told (name, number, of how many) as each begins.

    ``overrides`` are ``steps.NAME.train.epochs=1`` for one step, and ``train.seed=1`` for all. Raises what ``tune`` raises, with the step's name, and before anything is
    trained: InputError for steps that do not fit together.
    """
    store = store or open_store()
    documents = read_steps(config, overrides)
    check(documents, store, resume=resume, replace=replace, progress=progress)
    made: dict[str, str] = {}
    out = []
    for number, (name, document) in enumerate(documents.items(), 1):
        began = time.perf_counter()
        if stepping is not None:
            stepping(name, number, len(documents))
        with _naming(name):
            result = tune(
                _filled(document, made),
                store=store,
                metrics=metrics,
                progress=progress,
                started=started,
                resume=resume,
                replace=replace,
            )
        made[name] = result.model.name
        out.append(StepResult(name, result, time.perf_counter() - began))
    return PipelineResult(tuple(out))


def plan(
    config: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), *, store: Store | None = None
) -> list[StepPlan]:
    """What each step would take; nothing is trained, and nothing is left in the store."""
    store = store or open_store()
    found = check(read_steps(config, overrides), store)
    for step in found:
        if step.job.made:
            remove(store, step.job.base.name)
    return found


def read_steps(config: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> dict[str, Document]:
    """The documents of the steps, each with what the top says of all, in order.

    A step's own value wins over the top's, the command line over both, and what it says of one step over what it says of all; a reference to
    another step is not replaced by what is said of all. Raises InputError for unknown or bad names, and for a reference to anything but an earlier step.
    """
    whole = from_mapping(config) if isinstance(config, Mapping) else read_yaml(config)
    steps = whole.values.pop(STEPS, None)
    if not isinstance(steps, Mapping) or not steps:
        raise InputError(f"{STEPS} must be a mapping of at least one step; got {steps!r}")
    for name, step in steps.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"{STEPS}: a step's name must be letters, digits, '_' and '-'; got {name!r}")
        if not isinstance(step, Mapping):
            raise InputError(f"{STEPS}.{name} must be the sections of a run; got {step!r}")
    unknown = sorted(set(whole.values) - set(RunConfig.model_fields))
    if unknown:
        near = did_you_mean(unknown[0], [*RunConfig.model_fields, STEPS])
        raise InputError(f"unknown key {unknown[0]!r}{_origin(whole, unknown[0])}. {near}")
    own, shared = _by_step(overrides, list(steps))
    apply_overrides(whole, [override for override in shared if override.startswith("name=")])
    shared = [override for override in shared if not override.startswith("name=")]
    documents: dict[str, Document] = {}
    for name, step in steps.items():
        documents[name] = _document(whole, name, step, shared, own[name])
        for where, reference in references(documents[name].values):
            _check_reference(name, where, reference, list(documents), list(steps))
    return documents


def _by_step(overrides: Iterable[str], steps: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Overrides of each step, without its name, and those of all."""
    own: dict[str, list[str]] = {name: [] for name in steps}
    shared = []
    for override in overrides:
        if not override.startswith(f"{STEPS}."):
            shared.append(override)
            continue
        _, name, rest = [*override.split(".", 2), "", ""][:3]
        if name not in own or not rest:
            raise InputError(f"{override.partition('=')[0]}: step {name!r} is not known. {did_you_mean(name, steps)}")
        own[name].append(rest)
    return own, shared


def _document(whole: Document, name: str, step: Mapping[str, Any], shared: list[str], own: list[str]) -> Document:
    prefix = f"{STEPS}.{name}."
    origins = {key: origin for key, origin in whole.origins.items() if not key.startswith(f"{STEPS}.")}
    origins |= {key.removeprefix(prefix): o for key, o in whole.origins.items() if key.startswith(prefix)}
    called, sections = whole.values.get("name"), {key: value for key, value in whole.values.items() if key != "name"}
    document = Document(_merged(sections, step), origins, whole.folder)
    kept = dict(references(document.values))
    apply_overrides(document, shared)
    for where, value in kept.items():
        _put(document.values, where, value)
    apply_overrides(document, own)
    if called and "name" not in step and not any(override.startswith("name=") for override in own):
        document.values["name"] = f"{called}-{name}"
    return document


def _merged(shared: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    """Section by section: a step's keys win; another method or objective, and other files, replace what the top says of them whole."""
    out: dict[str, Any] = {key: dict(value) if isinstance(value, Mapping) else value for key, value in shared.items()}
    for key, given in step.items():
        before, value = out.get(key), given
        if key in ("method", "objective"):
            before, value = (({"name": v} if isinstance(v, str) else v) for v in (before, given))
            if isinstance(value, Mapping) and "name" in value and (before or {}).get("name") != value["name"]:
                before = None
        if (
            key == "data"
            and isinstance(before, Mapping)
            and isinstance(value, Mapping)
            and any(k in value for k in _FILES)
        ):
            before = {k: v for k, v in before.items() if k not in _FILES}
        if isinstance(before, Mapping) and isinstance(value, Mapping) and key != "model":
            out[key] = {**before, **value}
        else:
            out[key] = dict(value) if isinstance(value, Mapping) else value
    return out


def references(values: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """(keys, step) of each place that names another step: in model, method and objective."""
    for section in ("model", "method", "objective"):
        yield from _references(values.get(section), (section,))


def _references(value: Any, where: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    if isinstance(value, str):
        if value.startswith(f"{STEPS}."):
            yield where, value
    elif isinstance(value, Mapping):
        for key, nested in value.items():
            yield from _references(nested, (*where, key))
    elif isinstance(value, list | tuple):
        for number, nested in enumerate(value):
            yield from _references(nested, (*where, number))


def _put(values: Any, where: tuple[Any, ...], value: Any) -> None:
    """Set the place ``where``, if it is still there."""
    for key in where[:-1]:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(values, dict | list):
        values[where[-1]] = value


def _check_reference(step: str, where: tuple[Any, ...], reference: str, known: list[str], steps: list[str]) -> None:
    place, target = ".".join(map(str, where)), reference.removeprefix(f"{STEPS}.")
    said = f"{STEPS}.{step}.{place}: {reference}"
    if target not in steps:
        raise InputError(f"{said} is no step. {did_you_mean(target, [name for name in steps if name != step])}")
    if target == step:
        raise InputError(f"{said} is the step itself", hint="a step works on what earlier ones made")
    if target not in known:
        raise InputError(
            f"{said} comes later, so that it is not there yet",
            hint="write the steps in the order in which they are made",
        )


def _filled(document: Document, made: Mapping[str, str]) -> Document:
    """``document`` with names for the steps that are ``made``."""
    import copy

    values = copy.deepcopy(document.values)
    for where, reference in list(references(values)):
        _put(values, where, made.get(reference.removeprefix(f"{STEPS}."), reference))
    return Document(values, document.origins, document.folder)


def check(
    documents: Mapping[str, Document],
    store: Store,
    *,
    resume: bool = True,
    replace: bool = False,
    progress: Progress = no_progress,
) -> list[StepPlan]:
    """Resolve every step, and tokenise its rows, on what the earlier ones will make; raises what is wrong with any, with its name.

    A result that is not there yet is promised: the store is asked with it in place, so that every check of a step is the one that it makes itself.
    """
    made: dict[str, str] = {}
    promised: dict[str, ModelRecord] = {}
    names: dict[str, str] = {}
    out = []
    for name, document in documents.items():
        with _naming(name):
            out.append(_checked(name, document, store, made, promised, names, resume, replace, progress))
    return out


def _checked(
    name: str,
    document: Document,
    store: Store,
    made: dict[str, str],
    promised: dict[str, ModelRecord],
    names: dict[str, str],
    resume: bool,
    replace: bool,
    progress: Progress,
) -> StepPlan:
    from luthier.training import preflight

    seen = store.with_promised(promised)
    job = resolve(_filled(document, made), (), seen, progress=progress)
    waits = any(reference in promised for _, reference in references(_filled(document, made).values))
    done = earlier(store, job) if resume and not waits else None
    if isinstance(done, TuneResult):
        made[name] = done.model.name
        return StepPlan(name, job, done)
    if not replace:
        require_free_name(store, job)
    if job.name in names:
        raise InputError(
            f"name: the step {names[job.name]} has the name {job.name!r} too", hint="each result has a name of its own"
        )
    names[job.name] = name
    model, lengths, validation, layout = preflight.sketch(seen, job)
    after = job.objective.entry.optional("after")
    trains = after is None or any(parameter.requires_grad for parameter in model.module.parameters())
    predicted = None
    if lengths and trains:
        predicted = preflight.predict(seen, job, model, lengths, validation, layout=layout, loaded=False)
    if after is not None:
        model.put_head(None)  # the objective makes its own end of the model: a head for training alone is gone then
    promised[f"{STEPS}.{name}"] = ModelRecord(
        name=f"{STEPS}.{name}",
        kind="adapter",
        architecture=job.base.architecture,
        digest=f"{STEPS}.{name}",
        base=job.base.name,
        meta=meta_of(job, model, 0),
    )
    return StepPlan(name, job, None, predicted)


@contextmanager
def _naming(step: str) -> Iterator[None]:
    """Errors say which step they are of."""
    try:
        yield
    except LuthierError as error:
        error.message = f"step {step}: {error.message}"
        raise


def _origin(document: Document, key: str) -> str:
    return f" ({document.origins[key]})" if key in document.origins else ""
