"""Examples of a file that is larger than memory: read once in pieces into a folder of the store, then one at a time from there.

The folder is named by the file's content and how it was read, so that the next run finds it; it appears whole or not at all. Of every row it
holds the fields as JSON, and a few numbers that stay in memory while it is used (about 30 bytes a row): where the row begins, its line, its id,
what it asks (for splits) and its label. Ids and the digest are those that ``data.read`` gives.

The first row that can be used decides the format; in ``read`` it is the majority.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast, overload

from luthier.core.dataset import Dataset, Example, RowProblem, Splits
from luthier.core.digest import digest_json, digest_text
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.run import Progress, no_progress
from luthier.data.dedupe import content_key
from luthier.data.fields import RowError
from luthier.data.files import Broken, bare_name, rows_of
from luthier.data.formats import FIELD_NAMES, FORMATS, Format, build, recognise
from luthier.data.read import SHOWN_PROBLEMS, counted, difference, example_id, renamed, rows_error
from luthier.store.artifacts import staged
from luthier.store.database import Store
from luthier.store.home import disk_errors, file_sha256, sync_folder

_VERSION = 1
_COLUMNS = {"ends": "q", "lines": "q", "ids": "Q", "asked": "Q", "labels": "i"}
_ROWS, _FACTS = "rows.json", "facts.json"
_WHOLE = (".json", ".json.gz", ".txt", ".md", ".text")


@dataclass(frozen=True)
class StreamedDataset(Dataset):
    """A dataset whose ``examples`` are read from ``folder`` one at a time. ``path`` is the file that they came from, ``rows`` which of its rows
    belong here."""

    folder: Path = Path()
    path: str = ""
    rows: array[int] = field(default_factory=lambda: array("q"))
    columns: Mapping[str, array[int]] | None = None
    known_labels: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """As that of a dataset in memory with the same examples, without making a list of their ids."""
        found = hashlib.sha256(f'["{self.kind}",['.encode())
        for number, name in enumerate(self.ids()):
            found.update(f'{"," if number else ""}"{name}"'.encode())
        found.update(b"]]")
        return found.hexdigest()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Distinct targets of a labelled dataset, sorted."""
        return tuple(sorted(self.label_counts())) if self.kind == "labelled" else ()

    def label_counts(self) -> Counter[str]:
        """How often each target occurs (of labelled data; none are counted of other kinds)."""
        assert self.columns is not None
        places = self.columns["labels"]
        counts = Counter(places[row] for row in self.rows)
        return Counter({self.known_labels[place]: count for place, count in counts.items() if place >= 0})

    def ids(self) -> Iterator[str]:
        """Ids of the examples, in order."""
        return cast(_Examples, self.examples).ids()

    def part(self, name: str, rows: array[int]) -> StreamedDataset:
        """The dataset of some of these rows."""
        assert self.columns is not None
        copies = cast(_Examples, self.examples).copies
        examples = _Examples(self.folder, self.path, _form(self.format), rows, self.columns, copies)
        return replace(self, name=name, rows=rows, examples=cast(Any, examples))


class _Examples(Sequence[Example]):
    """Examples by number, each made of its row when it is asked for."""

    def __init__(
        self,
        folder: Path,
        path: str,
        form: Format,
        rows: array[int],
        columns: Mapping[str, array[int]],
        copies: Mapping[int, int],
    ) -> None:
        self._path, self._form, self._rows, self._columns, self.copies = path, form, rows, columns, copies
        self._file: IO[bytes] = (folder / _ROWS).open("rb", buffering=0)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, at: int | slice) -> Example | tuple[Example, ...]:
        if isinstance(at, slice):
            return tuple(self._made(row) for row in self._rows[at])
        return self._made(self._rows[at])

    def __iter__(self) -> Iterator[Example]:
        return map(self._made, self._rows)

    def ids(self) -> Iterator[str]:
        """The examples' ids in order."""
        return map(self._id, self._rows)

    def _id(self, row: int) -> str:
        name, copy = f"{self._columns['ids'][row]:016x}", self.copies.get(row, 1)
        return name if copy == 1 else f"{name}-{copy}"

    def _made(self, row: int) -> Example:
        ends = self._columns["ends"]
        start = ends[row - 1] if row else 0
        said = json.loads(os.pread(self._file.fileno(), ends[row] - start, start))
        return replace(build(self._form, said), id=self._id(row), source=f"{self._path}:{self._columns['lines'][row]}")


def stream(
    store: Store,
    path: Path,
    *,
    skip_bad: bool = False,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> StreamedDataset:
    """The examples of a file of JSON Lines, CSV, TSV or Parquet (text also gzipped), as ``data.read.read`` would read them, but not in memory.

    Raises UnsupportedError for files that can only be read as a whole, DataError as ``read`` does.
    """
    for name in columns or {}:
        if name not in FIELD_NAMES:
            raise InputError(f"columns: {name!r} is not a field that Luthier reads: {', '.join(sorted(FIELD_NAMES))}")
    if str(path).startswith("hub:") or path.is_dir() or path.name.lower().endswith(_WHOLE):
        raise UnsupportedError(
            f"data.streaming reads JSON Lines, CSV, TSV and Parquet files row by row; {path} is read as a whole",
            hint="write it as JSON Lines (.jsonl), or leave data.streaming out",
        )
    if not path.is_file():
        next(rows_of(path))  # says what is wrong with it
    how = [_VERSION, file_sha256(path), path.suffixes[-2:], sorted((columns or {}).items()), limit, skip_bad]
    folder = kept(store, digest_json(how), lambda new: _write(path, new, skip_bad, limit, columns or {}, progress))
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    found: dict[str, array[int]] = {name: read_column(folder / name, kind) for name, kind in _COLUMNS.items()}
    problems = tuple(RowProblem(str(path), line, reason) for line, reason in facts["problems"])
    form = _form(facts["format"])
    rows = array("q", range(len(found["ids"])))
    examples = cast(Any, _Examples(folder, str(path), form, rows, found, _copies(found["ids"])))
    labels = tuple(facts["labels"])
    return StreamedDataset(
        bare_name(path),
        form.kind,
        examples,
        form.name,
        problems,
        folder=folder,
        path=str(path),
        rows=rows,
        columns=found,
        known_labels=labels,
    )


def split_streamed(dataset: StreamedDataset, *, train: float, validation: float, test: float, seed: int = 0) -> Splits:
    """Cut by the digest of what each row asks: a row's side follows from its content and ``seed`` alone, copies are on one side, and the shares
    are met on average. Rows keep the order of the file. Raises InputError for shares that do not sum to 1, DataError for a side without rows."""
    shares = {"train": train, "validation": validation, "test": test}
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError(f"train + validation + test must be 1; got {sum(shares.values()):g}")
    assert dataset.columns is not None
    asked = dataset.columns["asked"]
    rows: dict[str, array[int]] = {name: array("q") for name in shares}
    for row in dataset.rows:
        at = int(digest_text(f"{seed}\n{asked[row]:016x}")[:13], 16) / 16**13
        side = "train" if at < train else "validation" if at < train + validation else "test"
        rows[side if shares[side] else "train"].append(row)
    empty = [name for name, share in shares.items() if share and not rows[name]]
    if empty:
        raise DataError(
            f"{dataset.name}: of {len(dataset)} rows none falls to {empty[0]}", hint="give it a larger share"
        )
    return Splits(**{name: dataset.part(f"{dataset.name}/{name}", found) for name, found in rows.items()})


def _write(
    path: Path, folder: Path, skip_bad: bool, limit: int | None, renames: Mapping[str, str], progress: Progress
) -> None:
    """Read the file into ``folder``."""
    columns = {name: array(kind) for name, kind in _COLUMNS.items()}
    labels: dict[str, int] = {}
    form, first, seen, bad, at, fields = None, 0, 0, 0, 0, Counter[str]()
    problems: list[RowProblem] = []
    with (folder / _ROWS).open("wb") as file:
        for line, read in counted(rows_of(path), progress):
            seen += 1
            reason = read.reason if isinstance(read, Broken) else ""
            if not isinstance(read, Broken):
                row = renamed(read, renames)
                fields.update(row.keys())
                own = recognise(row)
                form, first = (own, line) if form is None and own is not None else (form, first)
                try:
                    said = json.dumps(row, ensure_ascii=False).encode()
                    example = build(form, json.loads(said)) if form is not None and own is form else None
                except (RowError, TypeError, UnicodeEncodeError) as error:
                    example, reason = None, str(error)
                if example is None and not reason:
                    reason = _stranger(row, own, form, first)
            if reason:
                bad += 1
                if len(problems) < SHOWN_PROBLEMS:
                    problems.append(RowProblem(str(path), line, reason))
                continue
            assert example is not None
            at += file.write(said)
            place = -1
            if form is not None and form.kind == "labelled" and example.target is not None:
                place = labels.setdefault(example.target, len(labels))
            key = int(digest_text(content_key(example))[:16], 16)
            for name, value in zip(_COLUMNS, (at, line, int(example_id(example), 16), key, place), strict=True):
                columns[name].append(value)
            if limit is not None and len(columns["ids"]) == limit:
                break
    if not seen:
        raise DataError(f"{path}: no rows")
    if form is None and not all(problem.reason for problem in problems):
        raise DataError(f"{path}: its fields ({', '.join(sorted(fields))}) are no known format")
    if bad and (not skip_bad or not columns["ids"]):
        raise rows_error(str(path), seen, problems, skip_bad=skip_bad, count=bad)
    for name, column in columns.items():
        write_column(folder / name, column)
    assert form is not None
    facts = {
        "format": form.name,
        "labels": list(labels),
        "problems": [[problem.line, problem.reason] for problem in problems],
    }
    (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def _stranger(row: Mapping[str, Any], own: Format | None, form: Format | None, first: int) -> str:
    """Why a row that can be read does not belong with the others."""
    if own is not None and form is not None:
        return difference(own, form, first)
    if form is None:
        return f"its fields ({', '.join(map(str, row)) or 'none'}) are no known format"
    missing = ", ".join(sorted(set(form.needs) - set(row)))
    return f"{missing} is missing; line {first} has it (fields here: {', '.join(map(str, row)) or 'none'})"


def _form(name: str) -> Format:
    return next(form for form in FORMATS if form.name == name)


def _copies(ids: array[int]) -> dict[int, int]:
    """Of rows that say the same as an earlier one: 2 for the second, and so on."""
    import numpy as np

    names, counts = np.unique(np.frombuffer(ids, dtype=np.uint64), return_counts=True)
    twice = set(names[counts > 1].tolist())
    seen: Counter[int] = Counter()
    out = {}
    for row, name in enumerate(ids) if twice else ():
        if name in twice:
            seen[name] += 1
            out[row] = seen[name]
    return out


# ---- folders that are made once


def kept(store: Store, key: str, make: Callable[[Path], None]) -> Path:
    """The folder of ``key`` among what was read or tokenised before; ``make`` fills a new one, which appears only when it is whole."""
    target = store.home.root / "streams" / key
    if (target / _DONE).exists() and _is_whole(target):
        os.utime(target / _DONE)
        return target
    with staged(store) as folder:
        make(folder)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        for name in sizes:
            with (folder / name).open("rb") as file:
                os.fsync(file.fileno())
        (folder / _DONE).write_text(json.dumps(sizes), encoding="utf-8")
        sync_folder(folder)
        with disk_errors(target):
            target.parent.mkdir(exist_ok=True)
            if target.exists():  # damaged, or made by another process in the meantime
                target.rename(folder.parent / "replaced")
            folder.rename(target)
            sync_folder(target.parent)
    return target


_DONE = "done.json"


def _is_whole(folder: Path) -> bool:
    sizes = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    return all((folder / name).exists() and (folder / name).stat().st_size == size for name, size in sizes.items())


def write_column(path: Path, column: array[int]) -> None:
    """Numbers as they are in memory; the folder is this machine's own."""
    with path.open("wb") as file:
        column.tofile(file)


def read_column(path: Path, kind: str) -> array[int]:
    """What ``write_column`` wrote."""
    found: array[int] = array(kind)
    with path.open("rb") as file:
        found.fromfile(file, path.stat().st_size // found.itemsize)
    return found
