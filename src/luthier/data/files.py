"""Files into rows: JSON Lines, JSON, CSV, TSV, Parquet and plain text, each row with its line.

A row that cannot be read comes as ``Broken`` with the reason, so that one report can name them all. Files are read once, from
front to back; only ``.json`` is held in memory as a whole. A file of plain text is one document.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeAlias

from luthier.core.errors import DataError, nearest
from luthier.data.columnar import parquet_rows

MAX_LINE_BYTES = 256 * 2**20
MAX_UNPACKED_BYTES = 8 * 2**30
LONG_TEXT_BYTES = 8 * 2**20
"""A plain text of more bytes becomes several documents of about this size, cut at blank lines."""

_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
PLAIN = (".txt", ".md", ".text")
"""Endings of plain text: a file is one document, not rows."""
_TEXT_KINDS = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".jsonlines": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".conll": "conll",
    ".bio": "conll",
    ".iob2": "conll",
    **dict.fromkeys(PLAIN, "plain"),
}
KINDS = {**_TEXT_KINDS, ".parquet": "parquet", ".pq": "parquet"}


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that could not be read, and why."""

    reason: str


Row: TypeAlias = "Mapping[str, Any] | Broken"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def rows_of(path: Path) -> Iterator[tuple[int, Row]]:
    """(line, row) of every row of a file; for Parquet the line is the row's number, from 1.

    Raises DataError for a file that is missing, empty, a directory, of an unknown kind, or unreadable as a whole.
    """
    kind = _kind(path)
    _check_file(path)
    try:
        if kind == "parquet":
            yield from parquet_rows(path)
            return
        with _open(path) as file:
            if kind == "json":
                yield from _json_rows(path, file)
            elif kind == "lines":
                yield from _line_rows(path, file)
            elif kind == "conll":
                yield from _tagged_rows(path, file)
            elif kind == "plain":
                yield from _plain_rows(path, file)
            else:
                yield from _table_rows(path, file, tabs=kind == "tsv")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def bare_name(path: Path) -> str:
    """The file's name without its endings: ``train`` for ``train.jsonl.gz``."""
    name = path.name.removesuffix(".gz")
    return name.rsplit(".", 1)[0] or name


def _kind(path: Path) -> str:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    packed = path.name.lower().endswith(".gz")
    kind = (_TEXT_KINDS if packed else KINDS).get(suffix)
    if kind is None and path.is_file():
        allowed = ", ".join(KINDS)
        raise DataError(f"{path}: the file's ending must be one of {allowed} (text also .gz); got {path.suffix!r}")
    return kind or ""


def _check_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(
            p.name for p in path.iterdir() if p.is_file() and Path(p.name.removesuffix(".gz")).suffix in KINDS
        )
        hint = f"name one of its files: {', '.join(inside[:8])}" if inside else "it holds no data file"
        if any(name.lower().removesuffix(".gz").endswith(PLAIN) for name in inside):
            hint += "; a folder is read as a whole only when all its data files are plain text"
        raise DataError(f"{path} is a directory, not a data file", hint=hint)
    if not path.exists():
        folder = path.parent
        near = nearest(path.name, [p.name for p in folder.iterdir() if p.is_file()]) if folder.is_dir() else []
        hint = f"did you mean {' or '.join(str(folder / n) for n in near)}?" if near else ""
        if not folder.is_dir():
            hint = f"the folder {folder} does not exist either"
        raise DataError(f"no such file: {path}", hint=hint)
    if not path.stat().st_size:
        raise DataError(f"{path} is empty")


def _open(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """(line number, offset in the file, bytes of the line with its end). Strips a UTF-8 byte-order mark."""
    offset = number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{path}:{number}: line must be at most {MAX_LINE_BYTES:,} bytes; it is longer")
        begin, offset = offset, offset + len(line)
        if offset > MAX_UNPACKED_BYTES and path.name.lower().endswith(".gz"):
            raise DataError(f"{path}: unpacked it is more than {MAX_UNPACKED_BYTES:,} bytes; unpack it first")
        if number == 1:
            if line.startswith(_WIDE_BOMS):
                raise DataError(
                    f"{path} is UTF-16, expected UTF-8", hint=f"iconv -f UTF-16 -t UTF-8 {path} > utf8-{path.name}"
                )
            if line.startswith(_BOM):
                begin, line = begin + len(_BOM), line[len(_BOM) :]
        yield number, begin, line


def _utf8_reason(error: UnicodeDecodeError, begin: int) -> str:
    byte = error.object[error.start]
    return f"not UTF-8: byte 0x{byte:02x} at offset {begin + error.start} of the file"


def _parse(text: str) -> Row:
    """One JSON object, or why it is none."""
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as error:
        return Broken(f"invalid JSON at column {error.colno}: {error.msg}")
    except ValueError as error:
        return Broken(f"invalid JSON: {error}")
    except RecursionError:
        return Broken("invalid JSON: nested too deeply")
    return value if isinstance(value, dict) else Broken(f"expected a JSON object; got {_type_name(value)}")


def _line_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, Row]]:
    for number, begin, line in _lines(path, file):
        if not line.strip():
            continue
        try:
            text = line.rstrip(b"\r\n").decode("utf-8")
        except UnicodeDecodeError as error:
            yield number, Broken(_utf8_reason(error, begin))
            continue
        yield number, _parse(text)


def _plain_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, Row]]:
    """The whole file as one document; a very long one as several, cut at blank lines (else at line ends)."""
    held: list[str] = []
    first = size = 0
    for number, begin, line in _lines(path, file):
        try:
            text = line.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            yield number, Broken(_utf8_reason(error, begin) + "; convert the file: iconv -f LATIN1 -t UTF-8")
            return
        if "\0" in text:
            yield number, Broken("holds a zero byte: this is no plain text in UTF-8")
            return
        if size > LONG_TEXT_BYTES and (not text.strip() or size > 2 * LONG_TEXT_BYTES):
            yield first, _document(held)
            held, first, size = [], 0, 0
        held.append(text)
        first, size = first or number, size + len(line)
    if held:
        yield first, _document(held)


def _document(lines: list[str]) -> Row:
    text = "".join(lines)
    return {"text": text} if text.strip() else Broken("holds no text, only white space")


def folder_rows(folder: Path) -> Iterator[tuple[str, int, Row]]:
    """(file, line, row) of all plain text files in a folder and those below it, in the order of their names.

    Raises DataError for a folder without such files, or with data files of rows beside them.
    """
    inside = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    texts = [p for p in inside if p.name.lower().removesuffix(".gz").endswith(PLAIN)]
    others = [p for p in inside if p not in set(texts) and p.name.lower().removesuffix(".gz").endswith(tuple(KINDS))]
    if not texts or others:
        _check_file(folder)  # says which files there are
    for path in texts:
        if path.stat().st_size:
            yield from ((str(path), line, row) for line, row in rows_of(path))
        else:
            yield str(path), 1, Broken("is empty")


def _tagged_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, Row]]:
    """Sentences of CoNLL files: a word and its columns a line, the tag last, an empty line after each sentence; ``-DOCSTART-`` is left out."""
    words: list[str] = []
    tags: list[str] = []
    first, broken = 0, ""
    for number, begin, line in chain(_lines(path, file), [(0, 0, b"")]):
        try:
            parts = line.decode("utf-8").split()
        except UnicodeDecodeError as error:
            broken, parts = broken or f"line {number}: {_utf8_reason(error, begin)}", ["?", "O"]
        if not parts:
            if words:
                yield first, Broken(broken) if broken else {"tokens": words, "tags": tags}
            words, tags, broken = [], [], ""
            continue
        if parts[0] == "-DOCSTART-":
            continue
        first = first if words else number
        if len(parts) < 2:
            broken = broken or f"line {number}: expected a word and its tag; got {parts[0]!r}"
        words.append(parts[0])
        tags.append(parts[-1])


def _json_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, Row]]:
    """Elements of a list, or of the list under ``data``; also JSON Lines in a file that is named ``.json``."""
    content = file.read(MAX_UNPACKED_BYTES + 1)
    if len(content) > MAX_UNPACKED_BYTES:
        raise DataError(f"{path}: must be at most {MAX_UNPACKED_BYTES:,} bytes; write it as JSON Lines (.jsonl)")
    if content.startswith(_WIDE_BOMS):
        raise DataError(f"{path} is UTF-16, expected UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: {_utf8_reason(error, 0)}") from error
    cursor = _Cursor(path, text)
    if cursor.peek() == "{":
        if _is_lines(text):
            yield from _line_rows(path, io.BytesIO(content))
            return
        cursor.enter_data()
    elif cursor.peek() != "[":
        raise DataError(f"{path}: expected a list of rows, or {{'data': [...]}}; it begins with {text.lstrip()[:20]!r}")
    yield from cursor.elements()


def _is_lines(text: str) -> bool:
    """Whether more follows the first JSON value, as in JSON Lines."""
    begin = len(text) - len(text.lstrip())
    try:
        _, end = _decoder.raw_decode(text, begin)
    except (ValueError, RecursionError):
        return "\n" in text.strip()
    return bool(text[end:].strip())


class _Cursor:
    """A place in a JSON text, with the line that it is on."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.at, self.line, self._counted = 0, 1, 0

    def peek(self) -> str:
        """The next character that is not white space."""
        while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
            self.at += 1
        self.line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self.text[self.at : self.at + 1]

    def take(self, allowed: str) -> str:
        """Step over one of ``allowed`` characters."""
        found = self.peek()
        if not found or found not in allowed:
            expected = " or ".join(repr(c) for c in allowed)
            self._fail(f"expected {expected}; got {repr(found) if found else 'the end of the file'}")
        self.at += 1
        return found

    def value(self) -> Any:
        """Step over one JSON value."""
        self.peek()
        try:
            value, self.at = _decoder.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            self.line = error.lineno
            self._fail(f"invalid JSON at column {error.colno}: {error.msg}")
        except (ValueError, RecursionError) as error:
            self._fail(f"invalid JSON: {error}")
        return value

    def enter_data(self) -> None:
        """Go to the list under the key ``data`` of the object that begins here."""
        self.take("{")
        keys = []
        while self.peek() != "}":
            keys.append(self.value())
            self.take(":")
            if keys[-1] == "data" and self.peek() == "[":
                return
            self.value()
            if self.take(",}") == "}":
                break
        raise DataError(
            f"{self.path}: expected a list of rows, or {{'data': [...]}}; got an object with the keys {keys}"
        )

    def elements(self) -> Iterator[tuple[int, Row]]:
        """The objects of the list that begins here."""
        self.take("[")
        if self.peek() == "]":
            return
        while True:
            self.peek()
            line = self.line
            value = self.value()
            yield line, value if isinstance(value, dict) else Broken(f"expected a JSON object; got {_type_name(value)}")
            if self.take(",]") == "]":
                return

    def _fail(self, reason: str) -> NoReturn:
        raise DataError(
            f"{self.path}:{self.line}: {reason}",
            hint="a .json file is read as a whole; in JSON Lines (.jsonl) one broken row leaves the others readable",
        )


def _table_rows(path: Path, file: BinaryIO, *, tabs: bool) -> Iterator[tuple[int, Row]]:
    """Rows of a table with a header line. The delimiter is the one that the header uses: comma, semicolon or tab."""
    csv.field_size_limit(sys.maxsize)
    bad_lines: dict[int, str] = {}
    at = 0

    def texts() -> Iterator[str]:
        nonlocal at
        for at, begin, line in _lines(path, file):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad_lines[at] = _utf8_reason(error, begin)
                yield line.decode("utf-8", errors="replace")

    lines = texts()
    first = next((line for line in lines if line.strip()), "")
    delimiter = "\t" if tabs or ("\t" in first and "," not in first) else ","
    if delimiter == "," and "," not in first and ";" in first:
        delimiter = ";"
    header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    if not any(header):
        raise DataError(f"{path}: the first line must name the columns; it is blank")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}:{at}: column {twice[0]!r} occurs twice")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = at + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = "a quote that opens here is never closed" if "unexpected end" in str(error) else str(error)
            yield line, Broken(f"invalid CSV: {reason}")
            continue
        if cells is None:
            return
        bad = [bad_lines[n] for n in range(line, at + 1) if n in bad_lines]
        if bad:
            yield line, Broken(bad[0])
        elif len(cells) != len(header) and cells:
            yield line, Broken(f"expected {len(header)} columns as in the first line; got {len(cells)}")
        elif any(cell.strip() for cell in cells):
            yield line, {name: _cell(cell) for name, cell in zip(header, cells, strict=True) if name}


def _cell(cell: str) -> Any:
    """A cell: conversations are written as JSON lists in tables; everything else is text."""
    if cell.startswith(("[{", "[ {")):
        try:
            return _decoder.decode(cell)
        except ValueError:
            return cell
    return cell


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    return {dict: "an object", list: "a list", str: "text", bool: "true/false"}.get(type(value), f"the number {value}")
