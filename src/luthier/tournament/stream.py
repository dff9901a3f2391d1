"""What a continual tuning is told: a tuning's YAML whose data are a stream of tasks.

name: support
model: minilm-l6
stream: [autumn.jsonl, winter.yaml, {name: spring, data: {train: spring/train.jsonl, test: spring/test.jsonl}}]
method: {name: lora, rank: 8}
replay: 0.1
train: {epochs: 3}

An item is a file of rows, a task file, or what a task file holds. ``data`` (``split``, ``limit``, ``columns`` ...), ``prompt`` and ``scorers`` are for all of
them; there is one prompt, since one model answers everything in the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from luthier.core import catalog
from luthier.core.catalog import EntryConfig
from luthier.core.config import Document, from_mapping, read_yaml, validate
from luthier.core.digest import digest_json
from luthier.core.errors import DataError, InputError
from luthier.core.task import PromptTemplate, Task
from luthier.data.replay import Keep
from luthier.tasks._load import FILES

_PATHS = ("path", "train", "validation", "test")
_TRAINING = ("overlong",)  # a key of ``data`` that tasks do not know


class Replay(EntryConfig):
    """``share`` of every step's training rows is of earlier tasks (0: none). ``memory``: how many rows are remembered in all (left out: every one).
    ``keep``: which ones, see ``data.replay``."""

    share: float = Field(0.1, ge=0, lt=1)
    memory: int | None = Field(None, ge=1)
    keep: Keep = "balanced"


class Config(EntryConfig):
    """The sections. ``name`` is the stem of the results' names: each is NAME-STEP-TASK. ``model``, ``method``, ``objective`` and ``train`` are those of a tuning;
    ``seed`` decides what is replayed."""

    name: str | None = Field(None, min_length=1, max_length=60)
    model: str | dict[str, Any]
    stream: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    data: dict[str, Any] = Field(default_factory=dict)
    prompt: dict[str, Any] = Field(default_factory=dict)
    scorers: tuple[str | dict[str, Any], ...] = ()
    method: str | dict[str, Any]
    objective: str | dict[str, Any] | None = None
    train: dict[str, Any] = Field(default_factory=dict)
    replay: Replay = Replay()
    seed: int = Field(0, ge=0)

    @field_validator("replay", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        return {"share": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("scorers", mode="before")
    @classmethod
    def _one_scorer(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | dict) else value


@dataclass(frozen=True)
class Stream:
    """The checked configuration and its tasks, in order. ``labels``: those known after each step, old ones first."""

    config: Config
    tasks: tuple[Task, ...]
    origins: Mapping[str, str]

    @property
    def name(self) -> str:
        """The stem of the results' names."""
        if self.config.name:
            return self.config.name
        model = self.config.model
        base = model if isinstance(model, str) else str(model.get("base", "model"))
        return f"{base}-stream-{self.digest[:6]}"

    @property
    def digest(self) -> str:
        """Equal streams with equal settings have an equal one."""
        told = self.config.model_dump(mode="json", exclude={"name", "stream"})
        return digest_json([told, [[task.name, task.digest] for task in self.tasks]])

    def labels(self, step: int) -> tuple[str, ...]:
        """Labels of the tasks up to ``step`` (from 0), those of earlier tasks first."""
        return tuple(dict.fromkeys(label for task in self.tasks[: step + 1] for label in task.labels))

    def prompt(self, step: int) -> PromptTemplate:
        """The prompt of the model that learned ``step``."""
        return replace(self.tasks[step].prompt, labels=self.labels(step))

    def asked(self, task: int, step: int) -> Task:
        """A task as the model that learned ``step`` is asked it: among all labels known by then."""
        return replace(self.tasks[task], prompt=self.prompt(step))

    def tuning(self, step: int, base: str | None) -> dict[str, Any]:
        """The configuration of a step's tuning, on ``base`` (None: the stream's own model)."""
        config = self.config
        overlong = {key: config.data[key] for key in _TRAINING if key in config.data}
        return {
            "name": self.model(step),
            "model": config.model if base is None else {"base": base},
            "method": config.method,
            "train": config.train,
            **({"data": overlong} if overlong else {}),
            **({"objective": config.objective} if config.objective is not None else {}),
        }

    def model(self, step: int) -> str:
        """The name of what a step makes."""
        return f"{self.name}-{step + 1}-{self.tasks[step].name}"


def read_stream(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Stream:
    """Read a stream's YAML (or its values), and all of its tasks.

    Raises InputError for settings that are not allowed or tasks that do not go together, DataError for files that cannot be used.
    """
    document = from_mapping(source, overrides) if isinstance(source, Mapping) else read_yaml(source, overrides)
    config = validate(Config, document.values, origins=document.origins)
    tasks = [_task(config, document, item, place) for place, item in enumerate(config.stream, start=1)]
    _check(tasks)
    return Stream(config, tuple(tasks), document.origins)


def _task(config: Config, document: Document, item: str | Mapping[str, Any], place: int) -> Task:
    folder, values = document, dict(item) if isinstance(item, Mapping) else {}
    if isinstance(item, str) and Path(item).suffix.lower() in FILES:
        folder = read_yaml(document.path(item))
        values = {"name": Path(item).stem} | folder.values
    elif isinstance(item, str):
        values = {"data": item}
    elif "prompt" in values:
        raise InputError(f"stream.{place - 1}.prompt: there is one prompt for the whole stream; give it as prompt")
    data = values.get("data", {})
    data = {"path": data} if isinstance(data, str) else dict(data or {})
    named = {key: str(folder.path(data[key])) for key in _PATHS if isinstance(data.get(key), str)}
    shared = {key: value for key, value in config.data.items() if key not in _TRAINING}
    if strange := [key for key in shared if key in _PATHS]:
        raise InputError(f"data.{strange[0]}: name the files in stream; data holds what is the same for all of them")
    told: dict[str, Any] = {"name": _name(named, place), **values}
    if data or "benchmark" not in values:
        told["data"] = {**shared, **data, **named}
    if config.prompt:
        told["prompt"] = config.prompt
    if config.scorers:
        told["scorers"] = list(config.scorers)
    own = catalog.load("tasks", "own")
    found, _ = own.module.read_config(told)
    task: Task = own(found)
    if not task.splits.train.examples:
        raise DataError(
            f"stream.{place - 1}: task {task.name} has no rows to train on", hint="give data.train or data.path"
        )
    if not task.splits.test.examples:
        raise DataError(
            f"stream.{place - 1}: task {task.name} has no rows to score",
            hint="give data.test or a share in data.split.test",
        )
    return task


def _name(named: Mapping[str, str], place: int) -> str:
    """Of a file of rows its own name; of ``train.jsonl`` that of its folder."""
    for key in ("path", "train", "test"):
        if key in named:
            path = Path(named[key])
            stem = path.parent.name if path.stem in _PATHS else path.stem
            return (
                "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem).strip("-._")
                or f"task{place}"
            )
    return f"task{place}"


def _check(tasks: list[Task]) -> None:
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"stream: two tasks are called {twice[0]!r}", hint="give each a name: {name: ..., data: ...}")
    if len(kinds := {task.kind for task in tasks}) > 1:
        raise InputError(f"stream: all tasks must be of one kind; got {', '.join(sorted(kinds))}")
    if len(asked := {(task.prompt.instruction, task.prompt.input) for task in tasks}) > 1:
        raise InputError(
            f"stream: the task files have {len(asked)} different prompts, and one model is asked in one way",
            hint="give one as prompt, which goes before theirs",
        )
    if len(first := {task.scorers[0][0] for task in tasks}) > 1:
        raise InputError(
            f"stream: scores must be comparable; the tasks' first scorers are {', '.join(sorted(first))}",
            hint="give scorers for all of them",
        )
