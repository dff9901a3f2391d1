"""Training data as a stream of texts, whatever their format and however large: for checks that read everything once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError
from luthier.data.columnar import hub_rows
from luthier.data.files import KINDS, PLAIN, Broken, rows_of

_LONGEST = 200_000
_CARRIED = 2_000


@dataclass(frozen=True, slots=True)
class Document:
    """One text and its place, ``file:line``."""

    where: str
    text: str


def documents(paths: Iterable[str | Path]) -> Iterator[Document]:
    """Every text in the files, one a row (all its fields), or one a paragraph of a plain text file.

    A folder stands for all data files in it; ``hub:org/name[:split]`` is read from the hub. Rows that cannot be read are passed over:
    this is no check of their form. Raises DataError for a file that is missing or of an unknown kind.
    """
    for path in paths:
        if str(path).startswith("hub:"):
            yield from _rows(str(path), hub_rows(str(path)))
            continue
        for file in _files(Path(path).expanduser()):
            if file.suffix.lower() in PLAIN:
                yield from _paragraphs(file)
            else:
                yield from _rows(str(file), rows_of(file))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    endings = tuple(KINDS)
    inside = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().removesuffix(".gz").endswith(endings))
    if not inside:
        raise DataError(f"{path}: the folder holds no file that ends in {', '.join(endings)}")
    return inside


def _rows(name: str, rows: Iterable[tuple[int, Mapping[str, Any] | Broken]]) -> Iterator[Document]:
    for line, row in rows:
        if not isinstance(row, Broken):
            yield Document(f"{name}:{line}", "\n".join(_texts(row)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _paragraphs(file: Path) -> Iterator[Document]:
    """Runs of lines without a blank one. A very long run is cut, each piece beginning with the end of the one before."""
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            held: list[str] = []
            first = size = 0
            for number, line in enumerate(lines, 1):
                if line.strip():
                    first = first or number
                    held.append(line)
                    size += len(line)
                if held and (not line.strip() or size > _LONGEST):
                    text = "".join(held)
                    yield Document(f"{file}:{first}", text)
                    held, size = ([text[-_CARRIED:]], _CARRIED) if line.strip() else ([], 0)
                    first = number if held else 0
            if held:
                yield Document(f"{file}:{first}", "".join(held))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
