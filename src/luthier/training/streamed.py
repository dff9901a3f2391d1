"""An objective's rows on disk: token ids in one file, read row by row, so that memory does not grow with the data.

A dataset that is read in pieces (``data.stream``) is also tokenised in pieces, once: the rows are written into a folder of the store that is named
by everything they depend on, and the next run with the same data, tokenizer and settings finds them. In memory stay the length and weight
of every row and where it begins (24 bytes), so that the plan of the steps is the one of rows in memory.

An objective says in ``STREAMED`` which dataclasses its rows are made of, and thereby that a row follows from its example alone. One whose rows
are made of several examples (packing) has ``pieces`` for what follows from one, and ``assemble`` for the rows that these become.
"""

from __future__ import annotations

import json
import os
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload

from luthier.core.dataset import Dataset
from luthier.core.digest import digest_json
from luthier.core.errors import UnsupportedError
from luthier.core.run import Progress
from luthier.data.stream import StreamedDataset, kept, read_column, write_column
from luthier.store.database import Store
from luthier.training.shared import Rows, rows_key

if TYPE_CHECKING:
    from luthier.core.catalog import Entry
    from luthier.models.load import LoadedModel

_VERSION = 1
_PIECE_ROWS, _PIECE_CHARACTERS = 1000, 500_000
_TOKENS, _TAILS, _FACTS = "tokens.bin", "tails.json", "facts.json"
_COLUMNS = {"token_ends": "q", "tail_ends": "q", "lengths": "i", "weights": "i"}


def streamed_rows(
    store: Store,
    dataset: StreamedDataset,
    model: LoadedModel,
    objective: Entry,
    prompt: Any,
    config: Any,
    overlong: Any,
    progress: Progress,
) -> Rows:
    """As ``shared.prepare_rows``, tokenised piece by piece or found from before. Raises UnsupportedError for an objective whose rows cannot be
    made so, or a model whose features would be computed beforehand."""
    from luthier.objectives._rows import Limits

    known = streams(objective)
    if model.architecture == "encoder" and model.module.body_is_frozen:
        raise UnsupportedError(
            "data.streaming keeps token ids, and this method trains a head on features that are computed once",
            hint="leave data.streaming out, or choose a method that trains the encoder",
        )
    limits = Limits(model.context_length, overlong)
    make = objective.optional("pieces") or objective.module.prepare

    def write(folder: Path) -> None:
        with _Writer(folder) as writer:
            done = 0
            for piece in _in_pieces(dataset):
                for row in make(piece, model, prompt, config, limits):
                    writer.add(row)
                done += len(piece)
                progress("tokenise", done, len(dataset))
            writer.finish({"dropped": limits.dropped, "truncated": limits.truncated})

    key = digest_json(
        [_VERSION, sys.byteorder, dataset.path, *rows_key(dataset, model, objective, prompt, config, overlong)]
    )
    folder = kept(store, key, write)
    found = RowFile(folder, known)
    assemble = objective.optional("assemble")
    rows: Sequence[Any] = found if assemble is None else assemble(found, found.lengths, model, config, limits)
    return Rows(rows, tuple(found.facts["dropped"]), tuple(found.facts["truncated"]))


def streams(objective: Entry) -> Mapping[str, type]:
    """The dataclasses that an objective's rows are made of, by name. Raises UnsupportedError where they cannot be made in pieces."""
    from luthier.core import catalog

    known = objective.optional("STREAMED")
    if known is None or objective.optional("before") is not None:
        can = [name for name in catalog.names("objectives") if catalog.load("objectives", name).optional("STREAMED")]
        raise UnsupportedError(
            f"objective {objective.name} needs its data in memory; data.streaming works with {', '.join(can)}",
            hint="leave data.streaming out",
        )
    return {each.__name__: each for each in known}


def _in_pieces(dataset: Dataset) -> Iterator[Dataset]:
    """The examples, so many at once that a piece is small."""
    piece: list[Any] = []
    size = 0
    for example in dataset.examples:
        piece.append(example)
        size += sum(len(message.content) for message in example.messages)
        if len(piece) == _PIECE_ROWS or size > _PIECE_CHARACTERS:
            yield Dataset(dataset.name, dataset.kind, tuple(piece), dataset.format)
            piece, size = [], 0
    if piece:
        yield Dataset(dataset.name, dataset.kind, tuple(piece), dataset.format)


class _Writer:
    """Writes rows: lists of ints go to the tokens, what rows have in common into the facts, the rest into a line of JSON each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._columns: dict[str, array[int]] = {name: array(kind) for name, kind in _COLUMNS.items()}
        self._constants: dict[str, int] = {}
        self._by_identity: dict[int, tuple[Any, int]] = {}
        self._kind = ""
        self._tokens = self._tails = 0

    def __enter__(self) -> _Writer:
        self._files: list[IO[bytes]] = [(self._folder / name).open("wb") for name in (_TOKENS, _TAILS)]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, row: Any) -> None:
        """Write one row."""
        self._kind = type(row).__name__
        tail: list[Any] = []
        for field in fields(row):
            value = getattr(row, field.name)
            if isinstance(value, list) and all(type(each) is int for each in value):
                self._tokens += self._files[0].write(array("i", value).tobytes()) // 4
                tail.append({"n": len(value)})
            elif value is None or isinstance(value, str | int | float):
                tail.append(value)
            else:
                tail.append({"c": self._constant(value)})
        self._tails += self._files[1].write(json.dumps(tail, ensure_ascii=False).encode())
        for name, value in zip(_COLUMNS, (self._tokens, self._tails, row.length, row.weight), strict=True):
            self._columns[name].append(value)

    def _constant(self, value: Any) -> int:
        """The number of a value that many rows have."""
        if id(value) in self._by_identity:
            return self._by_identity[id(value)][1]
        number = self._constants.setdefault(json.dumps(_plain(value)), len(self._constants))
        self._by_identity[id(value)] = value, number  # the value is kept, so that no other gets its identity
        if len(self._by_identity) > _PIECE_ROWS:
            self._by_identity.clear()
        return number

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write what is known of all rows."""
        for name, column in self._columns.items():
            write_column(self._folder / name, column)
        whole = {**facts, "kind": self._kind, "constants": [json.loads(each) for each in self._constants]}
        (self._folder / _FACTS).write_text(json.dumps(whole), encoding="utf-8")


def _plain(value: Any) -> Any:
    """A value of dataclasses, lists and numbers as JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"of": type(value).__name__, "is": [_plain(getattr(value, field.name)) for field in fields(value)]}
    if isinstance(value, tuple):
        return {"of": "tuple", "is": [_plain(each) for each in value]}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a row that is streamed holds a {type(value).__name__}")


class RowFile(Sequence[Any]):
    """Rows by number, each read when it is asked for. ``lengths`` and ``weights`` are those of all rows, ``facts`` what is known besides."""

    def __init__(self, folder: Path, known: Mapping[str, type]) -> None:
        self.facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        self._known = known
        self._kind: Callable[..., Any] = known[self.facts["kind"]] if self.facts["kind"] else tuple
        self._constants = [self._made(each) for each in self.facts["constants"]]
        columns: dict[str, array[int]] = {name: read_column(folder / name, kind) for name, kind in _COLUMNS.items()}
        self.lengths, self.weights = columns["lengths"], columns["weights"]
        self._token_ends, self._tail_ends = columns["token_ends"], columns["tail_ends"]
        self._tokens = (folder / _TOKENS).open("rb", buffering=0)
        self._tails = (folder / _TAILS).open("rb", buffering=0)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> list[Any]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self._row(number) for number in range(*at.indices(len(self)))]
        return self._row(range(len(self))[at])

    def _row(self, number: int) -> Any:
        token, tail = ((ends[number - 1] if number else 0) for ends in (self._token_ends, self._tail_ends))
        said = json.loads(os.pread(self._tails.fileno(), self._tail_ends[number] - tail, tail))
        ids = array("i", os.pread(self._tokens.fileno(), (self._token_ends[number] - token) * 4, token * 4)).tolist()
        values, at = [], 0
        for value in said:
            if not isinstance(value, dict):
                values.append(value)
            elif "n" in value:
                values.append(ids[at : at + value["n"]])
                at += value["n"]
            else:
                values.append(self._constants[value["c"]])
        return self._kind(*values)

    def _made(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._made(each) for each in value]
        if not isinstance(value, dict):
            return value
        inner = [self._made(each) for each in value["is"]]
        return tuple(inner) if value["of"] == "tuple" else self._known[value["of"]](*inner)
