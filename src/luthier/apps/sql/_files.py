"""Files as tables in an in-memory DuckDB: CSV in any encoding, Parquet, JSON, and each sheet of a workbook. Files are only read."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb

from luthier.core.errors import InputError

_READERS = {".parquet": "read_parquet", ".json": "read_json_auto", ".jsonl": "read_json_auto"}
_HEAD_BYTES = 1 << 18
_SHEET_ROWS = 1_048_576


def load(connection: Any, paths: Sequence[str]) -> None:
    """Make a table of each file, called as the file is (a workbook's: ``file_sheet`` when it has several). Raises InputError that names the file."""
    taken: set[str] = set()
    for path in map(Path, paths):
        try:
            if path.suffix.lower() == ".xlsx":
                _load_workbook(connection, path, taken)
            else:
                _load_file(connection, path, _name(path.stem, taken))
        except (duckdb.Error, OSError, ValueError, KeyError, csv.Error) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{path} cannot be read as a table: {first}") from error


def _load_file(connection: Any, path: Path, name: str) -> None:
    suffix = path.suffix.lower()
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    with path.open("rb") as file:
        source = f"/dev/fd/{file.fileno()}"  # its name may hold what DuckDB takes for a pattern
        if suffix in _READERS:
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM {_READERS[suffix]}(?)", [source])
            return
        head = file.read(_HEAD_BYTES)
        encoding = _encoding(head)
        if encoding != "utf-8":
            file.seek(0)
            _load_encoded(connection, file, name, encoding, head)
            return
        first = _first_line(head.decode("utf-8", "replace"))
        header = ", header = true" if _is_header(first) else ""
        for more in ("", ", sample_size = -1", ", all_varchar = true"):
            try:
                connection.execute(
                    f"CREATE TABLE {name} AS SELECT * FROM read_csv(?, auto_detect = true{header}{more})", [source]
                )
            except duckdb.ConversionException:
                continue
            except duckdb.InvalidInputException:
                if more.endswith("true"):
                    raise
                continue
            return
        raise InputError(f"{path} cannot be read as a table")


def _load_encoded(connection: Any, file: Any, name: str, encoding: str, head: bytes) -> None:
    """A CSV that is not in UTF-8 (Chinese Excel writes GB18030): Arrow decodes it on the way."""
    from pyarrow import csv as arrow

    text = head.decode(encoding, "replace")
    comma = csv.Sniffer().sniff(text[:20_000], ",;\t|").delimiter
    table = arrow.read_csv(
        file,
        read_options=arrow.ReadOptions(encoding=encoding, use_threads=False),
        parse_options=arrow.ParseOptions(delimiter=comma, newlines_in_values=True),
    )
    _insert(connection, name, table)


def _load_workbook(connection: Any, path: Path, taken: set[str]) -> None:
    """Each sheet as a table; the first row that holds something holds the names."""
    import zipfile

    import openpyxl
    import pyarrow as pa

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is not an XLSX workbook") from error
    try:
        sheets = [(sheet.title, _rows(sheet)) for sheet in book.worksheets]
    finally:
        book.close()
    filled = [(title, rows) for title, rows in sheets if rows]
    if not filled:
        raise InputError(f"{path} holds no table: each of its sheets is empty")
    for title, rows in filled:
        heads = _heads(rows[0])
        columns = {head: [row[at] if at < len(row) else None for row in rows[1:]] for at, head in enumerate(heads)}
        name = _name(path.stem if len(filled) == 1 else f"{path.stem}_{title}", taken)
        _insert(connection, name, pa.table({head: _array(pa, values) for head, values in columns.items()}))


def _rows(sheet: Any) -> list[tuple[Any, ...]]:
    out = []
    for row in sheet.iter_rows(values_only=True, max_row=_SHEET_ROWS):
        if any(value is not None for value in row):
            out.append(row)
    return out


def _insert(connection: Any, name: str, table: Any) -> None:
    connection.register("luthier_rows", table)
    try:
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM luthier_rows")
    finally:
        connection.unregister("luthier_rows")


def _name(stem: str, taken: set[str]) -> str:
    """A quoted name for a table, each once."""
    plain = re.sub(r"\W+", "_", stem).strip("_") or "table"
    name, number = plain, 2
    while name.lower() in taken:
        name, number = f"{plain}_{number}", number + 1
    taken.add(name.lower())
    return f'"{name}"'


def _heads(row: Iterable[Any]) -> list[str]:
    """Names for columns: each once, none empty."""
    out: list[str] = []
    for at, value in enumerate(row):
        name = " ".join(str(value).split()) if value is not None else ""
        name = name or f"column_{at + 1}"
        while name.lower() in {each.lower() for each in out}:
            name = f"{name}_{at + 1}"
        out.append(name)
    return out


def _array(pa: Any, values: list[Any]) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # of several types
        pass
    try:
        return pa.array([None if value is None else float(value) for value in values])
    except (TypeError, ValueError):
        return pa.array([None if value is None else str(value) for value in values])


def _encoding(head: bytes) -> str:
    """utf-8 where it is that, else what the bytes look like."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    for cut in range(4):  # a character may be cut at the end of what was read
        try:
            head[: len(head) - cut].decode("utf-8")
            return "utf-8"
        except UnicodeDecodeError:
            continue
    for encoding in ("gb18030", "big5"):
        try:
            text = head[: len(head) - (len(head) == _HEAD_BYTES)].decode(encoding)
        except UnicodeDecodeError:
            continue
        if re.search(r"[\u4e00-\u9fff]{2}", text):
            return encoding
    return "latin-1"


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")


def _is_header(line: str) -> bool:
    """Names only: nothing empty, no number, none twice. DuckDB does not see a header where every column is text."""
    comma = max(",;\t|", key=line.count)
    cells = [cell.strip().strip('"') for cell in line.lstrip("\ufeff").split(comma)]
    return len(set(cells)) == len(cells) and all(cell and not re.match(r"[-+]?[\d.]", cell) for cell in cells)
