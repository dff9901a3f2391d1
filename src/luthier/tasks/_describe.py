"""What a benchmark of the catalogue is, for people: prompt, shots, scorers, source, options, and one question as it is asked."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from luthier.core import catalog
from luthier.core.catalog import Entry
from luthier.core.dataset import Example
from luthier.core.errors import NotFoundError, did_you_mean
from luthier.core.task import Task
from luthier.tasks._benchmark import OPTIONS, Benchmark

OWN = "own"


@dataclass(frozen=True)
class Option:
    """One key of a benchmark's Config. ``meaning`` is empty where the benchmark's own text explains it."""

    key: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class Description:
    """A benchmark with its default options. ``about`` is its own text, ``scorers`` are named as results name them."""

    name: str
    summary: str
    about: str
    kind: str
    shots: int
    scorers: tuple[str, ...]
    part: str
    pool: str
    paper: str
    licence: str
    hub: str
    fields: str
    matches: str
    options: tuple[Option, ...]
    options_about: str


def benchmarks() -> tuple[str, ...]:
    """Names of the catalogue's benchmarks."""
    return tuple(name for name in catalog.names("tasks") if name != OWN)


def describe(name: str) -> Description:
    """The benchmark called ``name``. Raises NotFoundError with near names."""
    if name not in benchmarks():
        raise NotFoundError(f"benchmark {name!r} is not known. {did_you_mean(name, benchmarks())}")
    entry = catalog.load("tasks", name)
    config = entry.config_class()
    defined: Benchmark = entry.module.define(config)
    about = inspect.cleandoc(entry.module.__doc__ or "")
    source = defined.source
    options_about = inspect.cleandoc(entry.config_class.__doc__ or "")
    return Description(
        name=name,
        summary=about.split("\n", 1)[0],
        about=about,
        kind=defined.kind,
        shots=_shots(entry, config),
        scorers=tuple(_scorer(*pair) for pair in defined.scorers),
        part=defined.part,
        pool=defined.pool,
        paper=source.paper,
        licence=source.licence,
        hub=source.hub,
        fields=source.fields,
        matches=source.matches,
        options=tuple(
            Option(
                key,
                field.get_default(call_default_factory=True),
                "" if f"``{key}``" in options_about else OPTIONS.get(key, ""),
            )
            for key, field in entry.config_class.model_fields.items()
        ),
        options_about=options_about,
    )


def _shots(entry: Entry, config: Any) -> int:
    own = entry.optional("shots")
    return int(own(config) if own is not None else getattr(config, "shots", 0))


def _scorer(name: str, options: dict[str, Any]) -> str:
    """``name``, the name that results carry where it is another, or the one option that tells it from its twin."""
    if "as" in options:
        return f"{name} as {options['as']}"
    return f"{name} ({options['normalise']})" if "normalise" in options else name


def question(task: Task, split: str = "test", index: int = 0) -> tuple[Example, tuple[str, ...]]:
    """One example, and what is put before the engine: raw prompts, or the turns as ``role: content``."""
    example = task.examples(split)[index]
    return example, example.raw or tuple(f"{turn.role}: {turn.content}" for turn in example.messages)
