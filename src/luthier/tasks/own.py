"""A user's own task: a YAML of a few lines that names data, prompt and scorers.

    name: support
    data: {path: tickets.jsonl, split: {train: 0.6, validation: 0.1, test: 0.3, seed: 0}}
    prompt: {instruction: "Sort the message into one of: {labels}. Answer with the class only."}
    scorers: [macro_f1, {name: exact, casefold: true}]

Files are relative to the YAML. The keys ``models``, ``entrants``, ``train``, ``budget``, ``search``, ``seeds``, ``jobs``, ``prices`` and
``machine`` and ``documents`` belong to the tournament, which reads the same file and checks them (``tournament.settings``,
``tournament.documents``).
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
from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.errors import DataError, InputError, UnsupportedError, did_you_mean
from luthier.core.message import user
from luthier.core.task import PromptTemplate, Task, TaskKind
from luthier.data import extraction
from luthier.data.prompts import resolve_prompt
from luthier.data.read import read
from luthier.data.split import split

CLASSIFY_INSTRUCTION = "Sort the text into one of these classes: {labels}. Answer with the class only."
LETTER_INSTRUCTION = "Answer with the letter of the right choice only."
HUB = "hub:"  # a dataset on the hub is named, not a file
DEFAULT_SCORERS: Mapping[str, tuple[str, ...]] = {
    "classify": ("macro_f1", "accuracy"),
    "choice": ("multiple_choice",),
    "generate": ("exact",),
    "likelihood": ("bits_per_byte", "perplexity"),
}
SCORERS_OF_DATA: Mapping[str, tuple[str | dict[str, Any], ...]] = {
    "number": ("mae", "rmse", "pearson", "spearman"),
    "entities": ("entity_f1", {"name": "entity_f1", "average": "macro", "as": "entity_macro_f1"}),
    "extraction": (
        "extraction_f1",
        *({"name": "extraction_f1", "of": of, "as": of} for of in ("entities", "relations", "triggers", "arguments")),
    ),
}
"""What is taken instead for data of a kind."""
SCORERS_OF_DOCUMENTS: tuple[str | dict[str, Any], ...] = (
    {"name": "token_f1", "from_documents": True},
    {"name": "squad_exact", "from_documents": True},
)
"""What is taken where documents hold the answers."""
EXTRACTION_TOKENS = 512
"""``max_new_tokens`` of answers that list entities, relations and events, when nothing is said."""
NUMBER_INSTRUCTION = "Answer with a number only."
_PATHS = ("path", "data", "examples", "databases")  # keys of a benchmark that name files


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
    """See PromptTemplate. ``labels`` fixes their order and may name some that the data lack. ``template`` takes instruction and input from
    the prompt catalogue (``NAME`` or ``NAME@VERSION``), ``values`` fill its other places. ``choices: letters`` shows a question's choices
    under A, B, C and asks for the letter; ``text`` scores each choice's text as the answer."""

    instruction: str | None = None
    input: str = "{input}"
    labels: tuple[str, ...] = ()
    template: str | None = None
    values: dict[str, str] = Field(default_factory=dict)
    choices: Literal["text", "letters"] = "text"

    @field_validator("input")
    @classmethod
    def _has_place(cls, value: str) -> str:
        if "{input}" not in value:
            raise ValueError("must contain {input}, where the text goes")
        return value


class Config(EntryConfig):
    """A task file. ``kind`` follows from the data when it is not given: text with a label is ``classify``, a question with choices
    ``choice``, another question, a text with a number, entities, relations or events ``generate``, plain text ``likelihood``. ``stop`` ends written answers, ``samples`` asks that often at
    ``temperature``, ``slices`` are fields of the rows by whose values results are also shown.
    """

    name: str = Field(default="task", min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    kind: Literal["classify", "choice", "generate", "likelihood"] | None = None
    data: DataSection | None = None
    benchmark: dict[str, Any] | None = None
    prompt: PromptSection = PromptSection()
    scorers: tuple[str | dict[str, Any], ...] = ()
    max_new_tokens: int = Field(default=64, ge=1)
    stop: tuple[str, ...] = ()
    samples: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    slices: tuple[str, ...] = ()
    models: dict[str, str] = Field(default_factory=dict)
    entrants: tuple[str | dict[str, Any], ...] | None = None
    train: dict[str, Any] = Field(default_factory=dict)
    budget: Any = None
    search: Any = None
    seeds: Any = None
    jobs: Any = None
    prices: Any = None
    machine: Any = None
    documents: Any = None

    @field_validator("stop", "slices", mode="before")
    @classmethod
    def _one_text(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

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
    _absolute_documents(document)
    benchmark = document.values.get("benchmark")
    if isinstance(benchmark, str):
        benchmark = document.values["benchmark"] = {"name": benchmark}
    for key in _PATHS:
        told = benchmark.get(key) if isinstance(benchmark, dict) else None
        if isinstance(benchmark, dict) and isinstance(told, str) and told and not told.startswith(HUB):
            benchmark[key] = str(document.path(told))
    return validate(Config, document.values, where=where, origins=document.origins), document


def _absolute_documents(document: Document) -> None:
    """Files and folders of documents are relative to the file, too; a name that is none of them is a knowledge base."""
    told = document.values.get("documents")
    if isinstance(told, str):
        told = document.values["documents"] = {"path" if document.path(told).exists() else "base": told}
    if isinstance(told, dict) and told.get("path"):
        listed = [told["path"]] if isinstance(told["path"], str) else told["path"]
        told["path"] = [str(document.path(str(each))) for each in listed]


def read_task(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Task:
    """The task of a YAML file. Raises InputError or DataError."""
    config, _ = read_config(source, overrides)
    return build(config)


def build(config: Config) -> Task:
    """Read and cut the data, and put the task together.

    Raises DataError when files cannot be used, hold no answers, have one class only, or test a label that training never saw.
    """
    if config.benchmark is not None:
        return _benchmark(config, config.benchmark)
    if config.data is None:
        raise InputError("data is required: one file, or a file for each part; or name a benchmark of the catalogue")
    splits = _splits(config.data)
    kind = config.kind or _kind(splits)
    splits = Splits(*(_asked(part, kind, config.prompt) for part in (splits.train, splits.validation, splits.test)))
    _refuse_unanswered(splits)
    labels: tuple[str, ...] = ()
    if kind == "classify":
        splits = Splits(*(replace(part, kind="labelled") for part in (splits.train, splits.validation, splits.test)))
        labels = _labels(splits, config.prompt.labels)
    _refuse_unknown_slices(splits.test, config.slices)
    return Task(
        name=config.name,
        kind=kind,
        splits=splits,
        prompt=_prompt(config.prompt, kind, splits, labels),
        scorers=_scorers(config.scorers, _default_scorers(config, kind, splits.test.kind)),
        max_new_tokens=_max_new_tokens(config, splits.test.kind),
        stop=config.stop,
        samples=config.samples,
        temperature=config.temperature,
        slices=config.slices,
    )


def _default_scorers(config: Config, kind: TaskKind, data: str) -> tuple[str | dict[str, Any], ...]:
    if config.documents is not None and kind == "generate":
        return SCORERS_OF_DOCUMENTS
    return SCORERS_OF_DATA.get(data) or DEFAULT_SCORERS[kind]


def _max_new_tokens(config: Config, data: str) -> int:
    given = "max_new_tokens" in config.model_fields_set
    return EXTRACTION_TOKENS if data in extraction.KINDS and not given else config.max_new_tokens


def _benchmark(config: Config, given: Mapping[str, Any]) -> Task:
    """The catalogue's task under this file's name; what the file sets itself goes before the benchmark's own."""
    given = dict(given)
    name = given.pop("name", None)
    known = [one for one in catalog.names("tasks") if one != "own"]
    if name not in known:
        raise InputError(f"benchmark.name must be one of the catalogue; got {name!r}. {did_you_mean(str(name), known)}")
    for key in ("data", "kind", "prompt"):
        if key in config.model_fields_set and getattr(config, key) is not None:
            raise InputError(f"{key} and benchmark exclude each other: {name} brings its own")
    if "path" in given:
        given.setdefault("data", given.pop("path"))
    entry = catalog.load("tasks", name)
    task: Task = entry(entry.configure(given))
    own = {key: getattr(config, key) for key in _ANSWERS if key in config.model_fields_set}
    if config.scorers:
        own["scorers"] = _scorers(config.scorers, ())
    if config.slices:
        _refuse_unknown_slices(task.splits.test, config.slices)
    return replace(task, name=config.name, **own)


_ANSWERS = ("max_new_tokens", "stop", "samples", "temperature", "slices")


def _prompt(section: PromptSection, kind: TaskKind, splits: Splits, labels: tuple[str, ...]) -> PromptTemplate:
    if section.template is not None:
        told: dict[str, Any] = {
            key: getattr(section, key) for key in ("instruction", "input") if key in section.model_fields_set
        }
        return resolve_prompt({"template": section.template, "values": section.values, "labels": labels, **told})
    instruction = section.instruction
    if instruction is None:
        instruction = CLASSIFY_INSTRUCTION if kind == "classify" else ""
        if kind == "choice" and section.choices == "letters":
            instruction = LETTER_INSTRUCTION
        if splits.test.kind == "number":
            instruction = NUMBER_INSTRUCTION
        if splits.test.kind in extraction.KINDS:
            instruction = extraction.instruction_for(splits.train if splits.train.examples else splits.test)
    return PromptTemplate(instruction, section.input, labels)


def _asked(part: Dataset, kind: TaskKind, prompt: PromptSection) -> Dataset:
    """The examples in the form that their kind is asked in."""
    if kind == "likelihood":
        return replace(part, examples=tuple(_whole_text(example) for example in part.examples))
    if kind != "choice":
        return part
    for example in part.examples:
        if not example.choices:
            raise DataError(
                f"{example.source}: the row has no choices",
                hint="a row of kind choice is question, choices and answer (an index, a letter or the text), or correct (a list)",
            )
    if prompt.choices == "text":
        return part
    return replace(part, examples=tuple(_with_letters(example) for example in part.examples))


def _whole_text(example: Example) -> Example:
    """A plain text is its own target, after nothing; an answer keeps its question."""
    return replace(example, target=example.text, raw=("",)) if example.target is None else example


def _with_letters(example: Example) -> Example:
    letters = tuple(chr(65 + at) for at in range(len(example.choices)))
    lines = [f"{letter}. {text}" for letter, text in zip(letters, example.choices, strict=True)]
    asked = user("\n".join([example.text, *lines]))
    return replace(
        example, id=f"{example.id}:letters", messages=asked, choices=letters, target=letters[example.correct[0]]
    )


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
    if found in SCORERS_OF_DATA:
        return "generate"
    if found == "question":
        return "choice" if all(example.choices for example in splits.test.examples) else "generate"
    if found == "text":
        return "likelihood"
    raise UnsupportedError(
        f"a task needs rows of text and label, of text and number, of text and entities, of question and answer, or of text; {splits.test.name} holds kind {found!r}",
        hint="luthier data inspect FILE shows how its rows are read",
    )


def _refuse_unanswered(splits: Splits) -> None:
    for part in (splits.train, splits.validation, splits.test):
        bare = [e for e in part.examples if e.target is None]
        if bare:
            raise DataError(
                f"{bare[0].source}: the row has no label or answer to compare with ({len(bare)} such rows in {part.name})"
            )


def _refuse_unknown_slices(test: Dataset, slices: Iterable[str]) -> None:
    known = {key for example in test.examples for key in example.meta}
    for key in slices:
        if key not in known:
            raise InputError(f"slices: no row of {test.name} has a field {key!r}. {did_you_mean(key, known)}")


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


def _scorers(
    given: tuple[str | dict[str, Any], ...], default: tuple[str | dict[str, Any], ...]
) -> tuple[tuple[str, dict[str, Any]], ...]:
    out: list[tuple[str, dict[str, Any]]] = []
    for item in given or default:
        options = {"name": item} if isinstance(item, str) else dict(item)
        name, label = options.pop("name", None), options.pop("as", None)
        if not isinstance(name, str):
            raise InputError(f"scorers: each is a name, or a mapping with a name; got {item!r}")
        if label is not None and not (isinstance(label, str) and label.strip()):
            raise InputError(f"scorers: as is the name that results carry, a text; got {label!r}")
        config = catalog.load("scorers", name).configure(options)
        told = {} if label is None else {"as": label}
        pair = (name, told | config.model_dump(mode="json", exclude_unset=True))
        if pair in out:
            raise InputError(f"scorers: {name!r} is named twice with the same options")
        out.append(pair)
    return tuple(out)
