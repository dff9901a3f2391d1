"""From a benchmark's rows to a task: prompts to the letter, worked examples, subjects, splits.

A benchmark says in ``Benchmark`` how a row reads; everything else is the same for all of them. Prompts follow the rules of
lm-evaluation-harness 0.4.13 (``api/task.py``, ``api/samplers.py``): description, worked examples each followed by a blank line, question;
a choice follows the question after one space. Worked examples that are drawn are drawn with the same generator, in the same order.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Dataset, Example, Kind, RowProblem, Splits
from luthier.core.digest import digest_json
from luthier.core.errors import DataError, InputError
from luthier.core.message import Conversation, Message
from luthier.core.task import PromptTemplate, Task, TaskKind
from luthier.data.read import convert_rows
from luthier.tasks._fields import Fields
from luthier.tasks._parts import has_part, is_file, is_hub, pick_subjects, rows_of_part
from luthier.tasks._source import Source

SHOT_END = "\n\n"
SHOTS_SEED = 1234  # what lm-evaluation-harness seeds the drawing of worked examples with

OPTIONS: Mapping[str, str] = {
    "data": "a file, a folder that holds the published parts, or hub:org/name",
    "split": "which part is asked; left out, the one that the benchmark is reported on",
    "limit": "the first so many questions only (of each subject, where there are subjects)",
    "skip_bad": "leave broken rows out instead of stopping at them",
    "chat": "ask in turns through the model's chat template, not as one raw text",
    "shots": "worked examples before each question",
    "examples": "a file, folder or hub name that the worked examples come from; left out, data",
    "seed": "draws the worked examples, where they are drawn",
    "train": "rows of the training part that come along, for strategies that choose examples and for tournaments",
    "subjects": "only these subjects",
}
"""What the options mean that several benchmarks have."""


class TextConfig(EntryConfig):
    """What every benchmark has: see ``OPTIONS``."""

    data: str = ""
    split: str = ""
    limit: int | None = Field(default=None, ge=1)
    skip_bad: bool = False


class AskedConfig(EntryConfig):
    """``TextConfig`` and ``chat``: a question that is asked as it is, without worked examples."""

    data: str = ""
    split: str = ""
    limit: int | None = Field(default=None, ge=1)
    skip_bad: bool = False
    chat: bool = False


class ShotsConfig(EntryConfig):
    """``AskedConfig`` and worked examples."""

    data: str = ""
    split: str = ""
    shots: int = Field(default=0, ge=0, le=64)
    examples: str = ""
    seed: int = SHOTS_SEED
    train: int = Field(default=1000, ge=0)
    limit: int | None = Field(default=None, ge=1)
    skip_bad: bool = False
    chat: bool = False


@dataclass(frozen=True)
class Item:
    """One row, read. ``text`` is the question as the prompt puts it and ``answer`` what a worked example shows after it.

    ``choices`` are without the space that joins them; ``correct`` the places of the right ones. Where the choices stand inside the
    text, ``contexts`` has one text for each and ``choices`` repeats what follows. ``target`` and ``references`` are what free text is
    compared with (left out: ``answer``). ``asked``, ``options`` and ``reply`` are question, choices and answer in a form for chat turns,
    where they must differ. ``prefix`` begins the answer in the raw prompt. ``group`` is the subject.
    """

    text: str
    answer: str = ""
    choices: tuple[str, ...] = ()
    correct: tuple[int, ...] = ()
    contexts: tuple[str, ...] = ()
    target: str | None = None
    references: tuple[str, ...] = ()
    asked: str = ""
    options: tuple[str, ...] = ()
    reply: str = ""
    prefix: str = ""
    group: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is read and asked. ``part`` is what is asked and ``pool`` where worked examples come from (empty: nowhere).

    ``sampler``: ``first`` takes the first ones of the pool (of the subject), ``drawn`` draws for each question anew, ``drawn_but_own``
    draws one more and drops the question itself. ``expand`` turns what a file holds into rows, where that differs. ``within`` says to
    which part a row belongs, where one file holds them all (empty: to any). ``in_turns``:
    there is no raw form, it is always asked through the chat template. ``entry`` is the catalogue's name where ``name`` says more.
    """

    name: str
    kind: TaskKind
    source: Source
    read: Callable[[Fields], Item]
    scorers: tuple[tuple[str, dict[str, Any]], ...]
    part: str = "test"
    pool: str = ""
    folder: str = ""
    sampler: Literal["first", "drawn", "drawn_but_own"] = "drawn"
    description: Callable[[str], str] = lambda group: ""
    delimiter: str = " "
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    samples: int = 1
    temperature: float = 0.0
    slices: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    expand: Callable[[Iterable[Any]], Iterable[Any]] | None = None
    within: Callable[[Fields], str] | None = None
    in_turns: bool = False
    entry: str = ""


@dataclass(frozen=True)
class _Settings:
    """The options of any benchmark's Config; those that it lacks have the value that changes nothing."""

    data: str
    split: str = ""
    limit: int | None = None
    skip_bad: bool = False
    chat: bool = False
    shots: int = 0
    examples: str = ""
    seed: int = SHOTS_SEED
    train: int = 0
    subjects: tuple[str, ...] = ()
    train_given: bool = False

    @staticmethod
    def of(config: EntryConfig) -> _Settings:
        """The options in ``config`` that are here too."""
        told = {f.name: getattr(config, f.name) for f in fields(_Settings) if f.name in type(config).model_fields}
        return _Settings(**told, train_given="train" in config.model_fields_set)


@dataclass(frozen=True)
class _Read:
    """An item, where it stood, and its row."""

    source: str
    item: Item
    row: Mapping[str, Any]


def build_task(benchmark: Benchmark, config: EntryConfig) -> Task:
    """The task: the asked part as ``test``, the pool as ``train``, a ``validation`` part where a folder has one.

    Raises InputError for options that do not fit the data, DataError by file and line for rows that cannot be used.
    """
    return _Building(benchmark, config).task()


def item_example(benchmark: Benchmark, item: Item, shots: Sequence[Item] = (), *, chat: bool = False) -> Example:
    """The example without id and source: raw prompt and choices to the letter, or with ``chat`` the turns of a conversation."""
    opening = benchmark.description(item.group)
    asked = item.asked or item.text
    meta = dict(item.meta)
    if chat:
        turns = [Message("system", opening)] if opening else []
        for shot in shots:
            turns += [Message("user", shot.asked or shot.text), Message("assistant", shot.reply or shot.answer.strip())]
        choices = item.options or item.choices
        return _answered(item, (*turns, Message("user", asked)), choices, (), meta)
    delimiter = benchmark.delimiter
    lead = opening + "".join(f"{shot.text}{delimiter}{shot.answer}{SHOT_END}" for shot in shots)
    raw = tuple(lead + text for text in item.contexts or (item.text + item.prefix,))
    return _answered(item, (Message("user", asked),), tuple(delimiter + choice for choice in item.choices), raw, meta)


def _answered(
    item: Item, messages: Conversation, choices: tuple[str, ...], raw: tuple[str, ...], meta: dict[str, Any]
) -> Example:
    target = choices[item.correct[0]] if choices else item.answer if item.target is None else item.target
    return Example(
        "", messages, target, meta=meta, references=item.references, choices=choices, correct=item.correct, raw=raw
    )


class _Building:
    """One task in the making."""

    def __init__(self, benchmark: Benchmark, config: EntryConfig) -> None:
        self.benchmark, self.given = benchmark, _Settings.of(config)
        self.problems: list[RowProblem] = []
        if not self.given.data:
            raise InputError(
                f"{benchmark.name} needs data: {OPTIONS['data']}{f' ({benchmark.source.hub})' if benchmark.source.hub else ''}",
                hint=f"a row has the fields {benchmark.source.fields}; luthier tasks show {benchmark.entry or benchmark.name} says more",
            )
        self.one_file = is_file(self.given.data) and benchmark.within is None
        if self.one_file and self.given.split:
            raise InputError(f"split chooses a part of a folder or of the hub; data is one file: {self.given.data}")
        self.part = self.given.split or benchmark.part
        self.subjects = pick_subjects(self.given.subjects, benchmark.subjects, benchmark.name)

    def task(self) -> Task:
        """See ``build_task``."""
        benchmark = self.benchmark
        asked = self._limited(self._read(self.given.data, self.part))
        pool = self._pool()
        splits = Splits(
            self._train(pool),
            self._dataset("validation", self._validation(), pool),
            self._dataset("test", asked, pool),
        )
        return Task(
            name=benchmark.name,
            kind=benchmark.kind,
            splits=splits,
            prompt=PromptTemplate(),
            scorers=benchmark.scorers,
            max_new_tokens=benchmark.max_new_tokens,
            stop=() if self.given.chat else benchmark.stop,
            samples=benchmark.samples,
            temperature=benchmark.temperature,
            slices=benchmark.slices,
            source=str(benchmark.source),
        )

    def _read(self, data: str, part: str, limit: int | None = None) -> list[_Read]:
        benchmark = self.benchmark

        def convert(row: Fields) -> tuple[Item, Fields]:
            return benchmark.read(row), row

        subjects = self.subjects or benchmark.subjects
        rows: Iterable[Any] = rows_of_part(data, part, config=benchmark.folder, subjects=subjects)
        if benchmark.expand is not None:
            rows = benchmark.expand(rows)
        if benchmark.within is not None:
            rows = [row for row in rows if not isinstance(row[2], Mapping) or benchmark.within(row[2]) in ("", part)]
        good, problems = convert_rows(rows, convert, skip_bad=self.given.skip_bad, limit=limit)
        self.problems += problems
        found = [_Read(source, item, row) for source, (item, row) in good]
        return self._of_subjects(found, data, part) if self.subjects else found

    def _of_subjects(self, found: list[_Read], data: str, part: str) -> list[_Read]:
        kept = [read for read in found if read.item.group in self.subjects]
        here = {read.item.group for read in found}
        for subject in self.subjects:
            if subject not in here:
                raise InputError(
                    f"{self.benchmark.name}: the {part} part of {data} has no subject {subject!r}; it has: "
                    + ", ".join(sorted(here))
                )
        return kept

    def _limited(self, asked: list[_Read]) -> list[_Read]:
        if self.given.limit is None:
            return asked
        seen: Counter[str] = Counter()
        out = []
        for read in asked:
            seen[read.item.group] += 1
            if seen[read.item.group] <= self.given.limit:
                out.append(read)
        return out

    def _pool(self) -> list[_Read]:
        """All rows that worked examples are taken from, or only as many as come along for training."""
        benchmark, given = self.benchmark, self.given
        if not benchmark.pool:
            return []
        if given.shots and not given.examples and self.one_file:
            raise InputError(
                f"{benchmark.name}: shots is {given.shots}, and data is one file, which is what is asked; worked examples come "
                f"from the {benchmark.pool} part",
                hint="give examples=FILE, a folder as data, or shots=0",
            )
        data = given.examples or given.data
        if given.shots:
            return self._read(data, benchmark.pool)
        told = bool(given.examples) or (is_hub(data) and given.train_given)
        if not given.train or not (
            told or has_part(data, benchmark.pool, config=benchmark.folder, subjects=benchmark.subjects)
        ):
            return []
        return self._read(data, benchmark.pool, None if self.subjects else given.train)

    def _validation(self) -> list[_Read]:
        """A part of its own for tuning on, where a folder has one that is neither asked nor the pool."""
        benchmark, given = self.benchmark, self.given
        if not given.train or self.part.startswith(("val", "dev")) or benchmark.pool == "dev":
            return []
        if not has_part(given.data, "validation", config=benchmark.folder, subjects=benchmark.subjects):
            return []
        return self._read(given.data, "validation", None if self.subjects else given.train)[: given.train]

    def _train(self, pool: list[_Read]) -> Dataset:
        """The pool with answers as they should be written."""
        examples = [
            (read.source, replace(item_example(self.benchmark, read.item), target=read.item.answer.strip()))
            for read in pool[: self.given.train]
        ]
        return self._named("train", examples)

    def _dataset(self, name: str, reads: list[_Read], pool: list[_Read]) -> Dataset:
        shots = _Shots(self.benchmark, self.given.shots, self.given.seed, pool)
        chat = self.given.chat or self.benchmark.in_turns
        made = [(read.source, item_example(self.benchmark, read.item, shots.of(read), chat=chat)) for read in reads]
        return self._named(name, made)

    def _named(self, name: str, examples: list[tuple[str, Example]]) -> Dataset:
        where = self.given.data if is_hub(self.given.data) else Path(self.given.data).name
        kind: Kind = "text" if self.benchmark.kind == "likelihood" else "question"
        problems = tuple(self.problems) if name == "test" else ()
        return Dataset(f"{where}/{name}", kind, tuple(with_ids(examples)), self.benchmark.name, problems)


def with_ids(examples: Iterable[tuple[str, Example]]) -> list[Example]:
    """Examples with their source, and ids from all that decides an answer; copies get ``-2``, ``-3``, ..."""
    seen: Counter[str] = Counter()
    out = []
    for source, example in examples:
        said = [[m.as_dict() for m in example.messages], example.raw, example.choices, example.correct]
        name = digest_json([*said, example.target, example.references, example.meta])[:16]
        seen[name] += 1
        out.append(replace(example, id=name if seen[name] == 1 else f"{name}-{seen[name]}", source=source))
    return out


class _Shots:
    """Chooses the worked examples of one question after another."""

    def __init__(self, benchmark: Benchmark, count: int, seed: int, pool: Sequence[_Read]) -> None:
        self.benchmark, self.count, self.seed = benchmark, count, seed
        self.random = random.Random(seed)
        self.pool = pool
        self.by_group: dict[str, list[_Read]] = {}
        if benchmark.sampler == "first":
            for read in pool:
                self.by_group.setdefault(read.item.group, []).append(read)

    def of(self, asked: _Read) -> list[Item]:
        """The worked examples of one question, in the order in which they are shown."""
        if not self.count:
            return []
        own = self.benchmark.sampler == "drawn_but_own"
        pool = self.by_group.get(asked.item.group, []) if self.benchmark.sampler == "first" else self.pool
        if len(pool) < self.count + own:
            of = f" of {asked.item.group}" if asked.item.group else ""
            raise DataError(
                f"{self.benchmark.name}: shots is {self.count}, and the {self.benchmark.pool} part{of} has {len(pool)} rows"
            )
        if self.benchmark.sampler == "first":
            return [read.item for read in pool[: self.count]]
        if not own:
            return [read.item for read in self.random.sample(pool, self.count)]
        drawn = [read for read in self.random.sample(pool, self.count + 1) if read.row != asked.row][: self.count]
        if len(drawn) < self.count:
            drawn = self.random.sample([read for read in pool if read.row != asked.row], self.count)
        return [read.item for read in drawn]
