"""Read examples from a file or the hub, in whichever of the known formats they are, and write them back.

Every broken row is reported as ``file:line: reason``; nothing is dropped in silence.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from luthier.core.dataset import Dataset, Example, RowProblem
from luthier.core.digest import digest_json
from luthier.core.errors import DataError, InputError, did_you_mean
from luthier.core.run import Progress, no_progress
from luthier.data.columnar import hub_rows
from luthier.data.fields import RowError
from luthier.data.files import Broken, Row, bare_name, folder_rows, rows_of
from luthier.data.formats import FIELD_NAMES, FORMATS, Format, as_row, build, recognise

SHOWN_PROBLEMS = 20
_SAID_EVERY = 1000
Made = TypeVar("Made")


def read(
    path: str | Path,
    *,
    skip_bad: bool = False,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> Dataset:
    """Read JSON Lines, JSON, CSV, TSV or Parquet (text also gzipped), or ``hub:org/name[/config][:split]``; or plain text (``.txt``, ``.md``),
    where a file is a document, and a folder all the text files in it.

    ``columns`` says which of the file's own fields stands for a known one: ``{"text": "body", "label": "topic"}``. ``limit`` stops
    after that many good rows. With ``skip_bad`` broken rows are left out and kept in ``problems``; without, they are a DataError that
    lists the first 20 and says how many there are. DataError also for a file that is missing, empty or in no known format.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1; got {limit}")
    if str(path).startswith("hub:"):
        name = str(path).removeprefix("hub:").partition(":")[0]
        named: Iterator[tuple[str, int, Row]] = ((str(path), line, row) for line, row in hub_rows(str(path)))
    elif (path := Path(path).expanduser()).is_dir():
        name, named = path.resolve().name, folder_rows(path)
    else:
        name = bare_name(path)
        named = ((str(path), line, row) for line, row in rows_of(path))
    return examples_from_rows(counted(named, progress), name=name, skip_bad=skip_bad, limit=limit, columns=columns)


def counted(rows: Iterable[Made], progress: Progress) -> Iterator[Made]:
    """The same rows; of long files ``progress`` is told as stage ``read`` how many have come (total 0: not known), and in the end that all have."""
    seen = 0
    try:
        for seen, row in enumerate(rows, 1):
            if seen % _SAID_EVERY == 0:
                progress("read", seen, 0)
            yield row
    finally:
        if seen >= _SAID_EVERY:
            progress("read", seen, seen)


def examples_from_rows(
    rows: Iterable[tuple[str, int, Row]],
    *,
    name: str,
    skip_bad: bool = False,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> Dataset:
    """A dataset from (file, line, row) triples, with the rules and errors of ``read``.

    The format that most rows have is the dataset's; rows in another one are problems.
    """
    gathered = _Gathered(columns or {})
    for file, line, row in rows:
        gathered.add(file, line, row)
        if limit is not None and gathered.good == limit:
            break
    return gathered.dataset(name, skip_bad=skip_bad)


def convert_rows(
    rows: Iterable[tuple[str, int, Row]],
    convert: Callable[[Mapping[str, Any]], Made],
    *,
    skip_bad: bool = False,
    limit: int | None = None,
) -> tuple[list[tuple[str, Made]], list[RowProblem]]:
    """What ``convert`` makes of each row, with its ``file:line``; for rows in a form that only their reader knows (benchmarks).

    ``convert`` raises RowError for a row that it cannot use. Then, as in ``read``: DataError with the first 20 reasons, or with
    ``skip_bad`` the other rows and the problems. ``limit`` stops after that many good rows.
    """
    good: list[tuple[str, Made]] = []
    problems: list[RowProblem] = []
    seen, where = 0, "the data"
    for file, line, row in rows:
        seen, where = seen + 1, file
        try:
            if isinstance(row, Broken):
                raise RowError(row.reason)
            good.append((f"{file}:{line}", convert(row)))
        except RowError as error:
            problems.append(RowProblem(file, line, str(error)))
        if limit is not None and len(good) == limit:
            break
    if not seen:
        raise DataError(f"{where}: no rows")
    if problems and (not skip_bad or not good):
        raise rows_error(problems[0].file, seen, problems, skip_bad=skip_bad)
    return good, problems


def write(dataset: Dataset, path: str | Path) -> Path:
    """Write a dataset as JSON Lines, whole or not at all; reading it back gives the same ids."""
    from luthier.store.home import write_atomic

    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(f"{line}\n" for line in _json_lines(dataset)))
    return path


def _json_lines(dataset: Dataset) -> Iterator[str]:
    for example in dataset.examples:
        yield json.dumps(as_row(example, dataset.kind), ensure_ascii=False, default=str)


def example_id(example: Example) -> str:
    """First 16 hexadecimal digits of the digest of everything that the row says."""
    said = [[m.as_dict() for m in turns] for turns in (example.messages, example.chosen, example.rejected)]
    beside = [example.positives, example.negatives, example.score] if example.positives else []
    return digest_json([*said, example.target, example.meta, *beside])[:16]


class _Gathered:
    """Rows as they come in, by format; the majority is known only at the end."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        for field in columns:
            if field not in FIELD_NAMES:
                raise InputError(
                    f"columns: {field!r} is not a field that Luthier reads. {did_you_mean(field, FIELD_NAMES)}"
                )
        self.columns = columns
        self.rows: list[tuple[Format, Example | RowProblem]] = []
        self.problems: list[RowProblem] = []
        self.by_format: Counter[str] = Counter()
        self.fields: Counter[str] = Counter()
        self.strangers: list[RowProblem] = []
        self.good = self.seen = 0
        self.file = ""

    def add(self, file: str, line: int, row: Row) -> None:
        self.seen += 1
        self.file = file if self.file in ("", file) else os.path.commonpath([self.file, file])
        if isinstance(row, Broken):
            self.problems.append(RowProblem(file, line, row.reason))
            return
        row = renamed(row, self.columns)
        self.fields.update(row.keys())
        form = recognise(row)
        if form is None:
            self.strangers.append(RowProblem(file, line, ", ".join(map(str, row)) or "no fields"))
            return
        try:
            made = build(form, row)
        except RowError as error:
            self.rows.append((form, RowProblem(file, line, str(error))))
        else:
            self.rows.append((form, replace(made, source=f"{file}:{line}")))
            self.good += 1
        self.by_format[form.name] += 1

    def dataset(self, name: str, *, skip_bad: bool) -> Dataset:
        if not self.seen:
            raise DataError(f"{self.file or name}: no rows")
        if not self.by_format and self.strangers:
            raise self._unknown()
        most = max(self.by_format, key=lambda n: self.by_format[n], default="")
        forms = [form for form, _ in self.rows if form.name == most]
        examples: list[Example] = []
        problems = list(self.problems)
        first = next((_source_line(made) for form, made in self.rows if form.name == most), 0)
        for form, made in self.rows:
            if isinstance(made, RowProblem):
                problems.append(made)
            elif form.name != most:
                file, _, line = made.source.rpartition(":")
                problems.append(RowProblem(file, int(line), difference(form, forms[0], first)))
            else:
                examples.append(made)
        for row in self.strangers:
            missing = ", ".join(sorted(set(forms[0].needs) - set(row.reason.split(", "))))
            problems.append(
                replace(row, reason=f"{missing} is missing; line {first} has it (fields here: {row.reason})")
            )
        problems.sort(key=lambda p: p.line)
        if problems and (not skip_bad or not examples):
            raise rows_error(self.file, self.seen, problems, skip_bad=skip_bad)
        return Dataset(name, forms[0].kind, _with_ids(examples), most, tuple(problems))

    def _unknown(self) -> DataError:
        fields = sorted(self.fields)
        lost = [own for own in self.columns.values() if own not in fields]
        if lost:
            return DataError(f"{self.file}: no column {lost[0]!r}. {did_you_mean(lost[0], fields)}")
        known = "; ".join(" + ".join(form.needs) for form in FORMATS)
        near = max(FORMATS, key=lambda form: len(self.fields.keys() & set(form.needs)) / len(form.needs))
        wanted = next(field for field in near.needs if field not in fields)
        return DataError(
            f"{self.file}: its fields ({', '.join(fields)}) are no known format. Known: {known}",
            hint=f"say which of its fields stands for a known one, for example --column {wanted}=FIELD",
        )


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """The row with its own fields under the known names that stand for them (``columns``: known -> own)."""
    found = {field: own for field, own in columns.items() if own in row}
    if not found:
        return row
    rest = {key: value for key, value in row.items() if key not in found.values()}
    return rest | {field: row[own] for field, own in found.items()}


def _source_line(made: Example | RowProblem) -> int:
    return made.line if isinstance(made, RowProblem) else int(made.source.rpartition(":")[2])


def difference(form: Format, most: Format, first: int) -> str:
    """Why a good row of another format does not belong here."""
    missing = [field for field in most.needs if field not in form.needs]
    if set(form.needs) < set(most.needs):
        return f"{', '.join(missing)} is missing; line {first} has it"
    return f"this row is {form.name}, but most rows, as line {first}, are {most.name}: one file holds one format"


def _with_ids(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Ids from content; the second and later copies of a row get ``-2``, ``-3``, ..."""
    seen: Counter[str] = Counter()
    out = []
    for example in examples:
        name = example_id(example)
        seen[name] += 1
        out.append(replace(example, id=name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return tuple(out)


def rows_error(
    file: str, seen: int, problems: list[RowProblem], *, skip_bad: bool, count: int | None = None
) -> DataError:
    """What to raise for ``problems`` among ``seen`` rows; ``count``: how many there are, when these are only the first."""
    count = len(problems) if count is None else count
    lines = [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if count > SHOWN_PROBLEMS:
        lines.append(f"  ... and {count - SHOWN_PROBLEMS:,} more")
    said = "no row can be used" if count == seen else f"{count:,} of {seen:,} rows cannot be used"
    hint = None if skip_bad else "correct them, or go on without them: --skip-bad (skip_bad=True)"
    return DataError("\n".join([f"{file}: {said}", *lines]), hint=hint)
