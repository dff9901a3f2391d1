"""A user's own task: a YAML of a few lines that names data, prompt and scorers.

    name: support
    data: {path: tickets.jsonl, split: {train: 0.6, validation: 0.1, test: 0.3, seed: 0}}
    prompt: {instruction: "Sort the message into one of: {labels}. Answer with the class only."}
    scorers: [macro_f1, {name: exact, casefold: true}]

Files are relative to the YAML. The keys ``models``, ``entrants``, ``train``, ``budget``, ``search``, ``seeds``, ``jobs``, ``prices`` and
``machine`` belong to the tournament, which reads the same file and checks them (``tournament.settings``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from luthier.core import catalog
from luthier.core.catalog import EntryConfig
from luthier.core.config import Document, from_mapping, read_yaml, validate
from luthier.core.dataset import Dataset, Splits
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.task import PromptTemplate, Task, TaskKind
from luthier.data.read import read
from luthier.data.split import split

CLASSIFY_INSTRUCTION = "Sort the text into one of these classes: {labels}. Answer with the class only."
HUB = "hub:"  # a dataset on the hub is named, not a file
DEFAULT_SCORERS: Mapping[str, tuple[str, ...]] = {"classify": ("macro_f1", "accuracy"), "generate": ("exact",)}


class SplitSection(EntryConfig):
    """Shares of one file, and the seed that decides which row goes where."""

    train: float = 0.6
    validation: float = 0.15
    test: float = 0.25
    seed: int = 0


class DataSection(EntryConfig):
    """``path`` is one file that ``split`` cuts; or name a file for each part with ``train``, ``validation``, ``test``.

    Without a ``validation`` file, a part of ``train`` as large as ``split`` says is kept back for it.
    """

    path: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    split: SplitSection = SplitSection()
    skip_bad: bool = False
    limit: int | None = Field(default=None, ge=1)
    columns: dict[str, str] | None = None


class PromptSection(EntryConfig):
    """See PromptTemplate. ``labels`` fixes their order and may name some that the data lack."""

    instruction: str | None = None
    input: str = "{input}"
    labels: tuple[str, ...] = ()

    @field_validator("input")
    @classmethod
    def _has_place(cls, value: str) -> str:
        if "{input}" not in value:
            raise ValueError("must contain {input}, where the text goes")
        return value


class Config(EntryConfig):
    """A task file. ``kind`` follows from the data when it is not given: text with a label is ``classify``, a question ``generate``."""

    name: str = Field(default="task", min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    kind: Literal["classify", "generate"] | None = None
    data: DataSection
    prompt: PromptSection = PromptSection()
    scorers: tuple[str | dict[str, Any], ...] = ()
    max_new_tokens: int = Field(default=64, ge=1)
    models: dict[str, str] = Field(default_factory=dict)
    entrants: tuple[str | dict[str, Any], ...] | None = None
    train: dict[str, Any] = Field(default_factory=dict)
    budget: Any = None
    search: Any = None
    seeds: Any = None
    jobs: Any = None
    prices: Any = None
    machine: Any = None

    @field_validator("scorers", mode="before")
    @classmethod
    def _one_scorer(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | dict) else value


def read_config(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> tuple[Config, Document]:
    """The checked config of a task file (or plain values), its file names made absolute; and the document with origins.

    Raises InputError that names file and line for anything that is not allowed.
    """
    if isinstance(source, Mapping):
        document = from_mapping(source, overrides)
        where = "task"
    else:
        document = read_yaml(source, overrides)
        where = Path(source).name
        document.values.setdefault("name", Path(source).stem)
    data = document.values.get("data")
    if isinstance(data, str):
        data = document.values["data"] = {"path": data}
    if isinstance(data, dict):
        for key in ("path", "train", "validation", "test"):
            if isinstance(data.get(key), str) and not data[key].startswith(HUB):
                data[key] = str(document.path(data[key]))
    return validate(Config, document.values, where=where, origins=document.origins), document


def read_task(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Task:
    """The task of a YAML file. Raises InputError or DataError."""
    config, _ = read_config(source, overrides)
    return build(config)


def build(config: Config) -> Task:
    """Read and cut the data, and put the task together.

    Raises DataError when files cannot be used, hold no answers, have one class only, or test a label that training never saw.
    """
    splits = _splits(config.data)
    kind = config.kind or _kind(splits)
    _refuse_unanswered(splits)
    labels: tuple[str, ...] = ()
    if kind == "classify":
        splits = Splits(*(replace(part, kind="labelled") for part in (splits.train, splits.validation, splits.test)))
        labels = _labels(splits, config.prompt.labels)
    instruction = config.prompt.instruction
    if instruction is None:
        instruction = CLASSIFY_INSTRUCTION if kind == "classify" else ""
    prompt = PromptTemplate(instruction, config.prompt.input, labels)
    return Task(config.name, kind, splits, prompt, _scorers(config.scorers, kind), config.max_new_tokens)


def _splits(data: DataSection) -> Splits:
    def load(path: str) -> Dataset:
        return read(path, skip_bad=data.skip_bad, limit=data.limit, columns=data.columns)

    parts = data.split
    if data.path is not None:
        named = [key for key in ("train", "validation", "test") if getattr(data, key) is not None]
        if named:
            raise InputError(
                f"data.path and data.{named[0]} exclude each other: one file that is cut, or a file for each part"
            )
        return split(load(data.path), train=parts.train, validation=parts.validation, test=parts.test, seed=parts.seed)
    if data.test is None:
        raise InputError("data needs path (one file that is cut into train, validation, test), or at least test")
    test = load(data.test)
    train = load(data.train) if data.train else replace(test, name="train", examples=(), problems=())
    if data.validation:
        return Splits(train, load(data.validation), test)
    nothing = replace(train, name="validation", examples=(), problems=())
    if not train.examples or parts.validation <= 0:
        return Splits(train, nothing, test)
    kept = parts.validation / (parts.train + parts.validation)
    cut = split(train, train=1.0 - kept, validation=kept, test=0.0, seed=parts.seed)
    return Splits(cut.train, cut.validation, test)


def _kind(splits: Splits) -> TaskKind:
    found = splits.test.kind
    if found == "labelled":
        return "classify"
    if found == "question":
        return "generate"
    raise UnsupportedError(
        f"a task needs rows of text and label, or of question and answer; {splits.test.name} holds kind {found!r}",
        hint="luthier data inspect FILE shows how its rows are read",
    )


def _refuse_unanswered(splits: Splits) -> None:
    for part in (splits.train, splits.validation, splits.test):
        bare = [e for e in part.examples if e.target is None]
        if bare:
            raise DataError(
                f"{bare[0].source}: the row has no label or answer to compare with ({len(bare)} such rows in {part.name})"
            )


def _labels(splits: Splits, given: tuple[str, ...]) -> tuple[str, ...]:
    """The closed answer set, in the given order or sorted."""
    counts: Counter[str] = Counter()
    for part in (splits.train, splits.validation, splits.test):
        counts.update(part.label_counts())
    if not counts:
        raise DataError(f"{splits.test.name}: no row has a label, so there is nothing to classify")
    if len(counts) == 1 and len(given) < 2:
        only, number = next(iter(counts.items()))
        raise DataError(f"all {number} rows have the label {only!r}: one class leaves nothing to tell apart")
    known = set(given) or set(counts)
    _refuse_unseen(splits.test, known, "prompt.labels")
    _refuse_unseen(splits.validation, known, "prompt.labels")
    _refuse_unseen(splits.train, known, "prompt.labels")
    if splits.train.examples:
        seen = set(splits.train.labels)
        _refuse_unseen(splits.test, seen, "the train split")
        _refuse_unseen(splits.validation, seen, "the train split")
    return given or tuple(sorted(counts))


def _refuse_unseen(part: Dataset, known: set[str], where: str) -> None:
    unseen = [e for e in part.examples if e.target is not None and e.target not in known]
    if unseen:
        first = unseen[0]
        raise DataError(
            f"label {first.target!r} is not in {where} ({first.source}, {len(unseen)} such rows in {part.name}); "
            f"known: {', '.join(sorted(known))}",
            hint="correct the label, add training rows that have it, or use another data.split.seed",
        )


def _scorers(given: tuple[str | dict[str, Any], ...], kind: TaskKind) -> tuple[tuple[str, dict[str, Any]], ...]:
    out: list[tuple[str, dict[str, Any]]] = []
    for item in given or DEFAULT_SCORERS[kind]:
        options = {"name": item} if isinstance(item, str) else dict(item)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise InputError(f"scorers: each is a name, or a mapping with a name; got {item!r}")
        config = catalog.load("scorers", name).configure(options)
        pair = (name, config.model_dump(mode="json", exclude_unset=True))
        if pair in out:
            raise InputError(f"scorers: {name!r} is named twice with the same options")
        out.append(pair)
    return tuple(out)
