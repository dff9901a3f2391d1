"""Several tasks on one body: each source of the data has an objective, and where that needs one a head, of its own.

Caruana 1997, "Multitask learning"; Liu et al. 2019, "Multi-task deep neural networks for natural language understanding", algorithm 1. In a step
with N rows, n of them of task k, whose objective's loss over them is L_k, what is minimised is

    sum over k of  n / N  w_k L_k / c_k

so that ``data.sampling`` and the weights w_k decide what a task counts, and not whether its loss is a mean over tokens or rows. With
``normalise`` c_k is the logarithm of the number of labels, the loss of a guess (Aghajanyan et al. 2021, "Muppet", section 3.2), else 1. With ``weighting: uncertainty`` the term of a task is
w_k (exp(-s_k) L_k / c_k + s_k / 2) for a trained s_k, the logarithm of its variance (Kendall, Gal and Cipolla 2018, equation 10).

The result is the body, NAME, and for every task a model NAME-TASK that answers it; their files in common are on the disk once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from luthier.core import catalog
from luthier.core.catalog import Entry, EntryConfig
from luthier.core.dataset import Dataset
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.task import PromptTemplate
from luthier.models.encoder import new_head
from luthier.models.load import LoadedModel
from luthier.objectives._loss import Loss
from luthier.objectives._rows import Around, Limits
from luthier.objectives._tasks import TaskHeads, answering, bare

KINDS = ("labelled", "question", "chat", "text", "number", "entities", "extraction", "preference")
ARCHITECTURES = ("decoder", "encoder", "encoder-decoder")
DEFAULT_FOR: tuple[str, ...] = ()
DEFAULTS: Mapping[str, Mapping[str, Any]] = {}
BY_SOURCE = True
"""Each source has a loss of its own: sources may be of different kinds, and the loop counts each by its rows."""

_CANNOT = ("WHOLE_STEPS", "BY_SOURCE", "before", "after", "rollout", "reads")
_WITHOUT_PROMPT = ("chat", "text", "preference")


class TaskConfig(EntryConfig):
    """``objective``: a name, or ``{name: ..., options}``; alone it may stand for the task. ``weight``: w. ``instruction`` and ``input``: the task's prompt, for decoders; left
    out, that of the run."""

    objective: dict[str, Any]
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    instruction: str | None = None
    input: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, values: Any) -> Any:
        """``emotion: classify`` means ``emotion: {objective: classify}``."""
        return {"objective": values} if isinstance(values, str) else values

    @field_validator("objective", mode="before")
    @classmethod
    def _resolved(cls, value: Any) -> Any:
        """With every option, so that equal work is seen to be equal."""
        given = {"name": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            raise ValueError("must be the name of an objective, or {name: ..., options}")
        entry = catalog.load("objectives", given["name"])
        cannot = [what for what in _CANNOT if entry.optional(what)]
        if cannot:
            raise ValueError(
                f"objective {entry.name} cannot share a body with others: its loss compares the rows of a step, or it reads other models"
            )
        options = {key: option for key, option in given.items() if key != "name"}
        return {"name": entry.name, **entry.configure(options).model_dump(exclude_unset=True)}

    @field_validator("input")
    @classmethod
    def _holds_input(cls, value: str | None) -> str | None:
        if value is not None and "{input}" not in value:
            raise ValueError("must hold {input}, the place of the row's text")
        return value

    @property
    def part(self) -> tuple[Entry, Any]:
        """The task's objective and its options."""
        entry = catalog.load("objectives", self.objective["name"])
        return entry, entry.configure({key: option for key, option in self.objective.items() if key != "name"})

    def prompt(self, given: PromptTemplate, labels: Sequence[str]) -> PromptTemplate:
        """The task's prompt where the run's is ``given``."""
        instruction = given.instruction if self.instruction is None else self.instruction
        return PromptTemplate(instruction, given.input if self.input is None else self.input, tuple(labels))


class Config(EntryConfig):
    """``tasks``: what each of ``data.sources`` is trained for, by the source's name. ``weighting``: ``fixed`` weights, or trained ones by
    ``uncertainty``. ``normalise``: a task's loss counts beside that of guessing among its labels."""

    tasks: dict[str, TaskConfig] = Field(min_length=1)
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    normalise: bool = False


@dataclass(slots=True)
class TaskRow(Around):
    """A row of a task's own objective."""

    task: str
    objective: Entry


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """Rows of one task as its objective collates them."""

    task: str
    batch: Any


def heads_for(model: LoadedModel, train: Dataset, config: Config) -> None:
    """The heads that the tasks' objectives put on a model, new ones. ``train`` has the rows of each source in ``parts``.

    Raises InputError for tasks that are not the sources, UnsupportedError for an objective that does not fit its data or the model.
    """
    parts = {part.name.partition("/")[0]: part for part in train.parts}
    if parts.keys() != config.tasks.keys():
        raise InputError(
            f"objective.tasks must be the data.sources, {', '.join(parts) or 'none'}; got {', '.join(config.tasks)}",
            hint="a source's name is its file's without an ending, or give it one: {name: emotion, path: ...}",
        )
    labels = {task: part.labels for task, part in parts.items()}
    heads: dict[str, Any] = {}
    for task, of in config.tasks.items():
        entry, options = of.part
        _check(task, entry, parts[task], model)
        model.put_head(None)
        model.labels = labels[task]
        if (of_data := entry.optional("heads_for")) is not None:
            of_data(model, parts[task], options)
        elif (plain := entry.optional("heads")) is not None:
            plain(model, options)
        elif model.architecture == "encoder" and labels[task]:
            model.put_head(new_head(model.module.width, len(labels[task])))
        heads[task] = model.head
    model.labels = ()
    made = TaskHeads({task: labels[task] for task in config.tasks}, heads, variances=config.weighting == "uncertainty")
    model.put_head(made.to(model.device).requires_grad_(True))


def _check(task: str, entry: Entry, part: Dataset, model: LoadedModel) -> None:
    if part.kind not in entry.module.KINDS:
        raise UnsupportedError(
            f"task {task}: objective {entry.name} needs data of kind {' or '.join(entry.module.KINDS)}; {part.name} is {part.kind}"
        )
    if model.architecture not in entry.module.ARCHITECTURES:
        raise UnsupportedError(
            f"task {task}: objective {entry.name} needs a model of architecture {' or '.join(entry.module.ARCHITECTURES)}; "
            f"{model.record.name} is of architecture {model.architecture}"
        )


def prepare(
    dataset: Dataset, model: LoadedModel, prompt: PromptTemplate, config: Config, limits: Limits
) -> list[TaskRow]:
    """The rows that the task's objective makes of one source's, whose name ``dataset`` bears (SOURCE/SPLIT)."""
    task = dataset.name.partition("/")[0]
    if task not in config.tasks:
        raise InputError(f"{dataset.name} is of no task; tasks are {', '.join(config.tasks)}")
    entry, options = config.tasks[task].part
    with answering(model, task):
        own = config.tasks[task].prompt(prompt, model.labels)
        return [TaskRow(row, task, entry) for row in entry.module.prepare(dataset, model, own, options, limits)]


def collate(rows: Sequence[TaskRow], model: LoadedModel) -> TaskBatch:
    """One batch of rows of one task."""
    (task,) = {row.task for row in rows}
    with answering(model, task):
        return TaskBatch(task, rows[0].objective.module.collate([row.row for row in rows], model))


def loss(model: LoadedModel, batch: TaskBatch, config: Config) -> Loss:
    """The task's term, a mean over what its own loss counts, and its metrics; ``unweighted_loss`` is L where that is not the same."""
    of = config.tasks[batch.task]
    entry, options = of.part
    heads: TaskHeads = model.head
    with answering(model, batch.task):
        found: Loss = entry(model, batch.batch, options)
    value = found.value
    if config.normalise and len(heads.labels[batch.task]) > 1:
        value = value / math.log(len(heads.labels[batch.task]))
    metrics = dict(found.metrics)
    if config.weighting == "uncertainty":
        log_variance = heads.log_variances[batch.task]
        value = (-log_variance).exp() * value + log_variance / 2
        metrics["log_variance"] = float(log_variance.detach())
    value = of.weight * value
    if config.normalise or config.weighting != "fixed" or of.weight != 1:
        metrics["unweighted_loss"] = float(found.value.detach())
    return Loss(value, found.count, metrics, tuple((batch.task, outcome) for outcome in found.outcomes))


def figures(outcomes: Sequence[tuple[str, Any]], config: Config) -> dict[str, float]:
    """What each task's objective says of a whole set: ``pearson/quality``."""
    found: dict[str, float] = {}
    for task, of in config.tasks.items():
        entry, options = of.part
        own = [outcome for name, outcome in outcomes if name == task]
        if own:
            found |= {f"{key}/{task}": value for key, value in entry.module.figures(own, options).items()}
    return found


def results(
    model: LoadedModel, train: Dataset, prompt: PromptTemplate, config: Config
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is made, one after another: "", the body that all share, then each task. ``model`` is that while it is yielded; beside it stand
    the objective and a decoder's prompt."""
    heads: TaskHeads = model.head
    with bare(model):
        yield "", {"prompt": None}
    for part in train.parts:
        task = part.name.partition("/")[0]
        of = config.tasks[task]
        asked = model.architecture != "encoder" and part.kind not in _WITHOUT_PROMPT
        own = of.prompt(prompt, heads.labels[task]).as_dict() if asked else None
        with answering(model, task):
            yield task, {"prompt": own, "objective": {"name": of.objective["name"], "config": of.part[1].model_dump()}}
