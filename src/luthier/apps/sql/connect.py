"""Connections that can only read, with limits of time, rows and memory. SQLite, DuckDB, PostgreSQL, MySQL, and files as tables."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from luthier.apps.sql.schema import Column, ForeignKey, Schema, Table, quoted, samples_of
from luthier.core.errors import EngineError, InputError, MissingExtraError

FILES = (".csv", ".tsv", ".parquet", ".xlsx", ".json", ".jsonl")
SQLITE_FILES = (".sqlite", ".sqlite3", ".db", ".db3")
_MOST_VALUE_BYTES = 10_000_000
_MOST_TABLES = 500


@dataclass(frozen=True)
class Limits:
    """Of one query: seconds, rows that are returned, and megabytes that DuckDB may use."""

    timeout_s: float = 30.0
    rows: int = 1000
    memory_mb: int = 1024


@dataclass(frozen=True)
class Result:
    """Rows of a query. ``cut``: there were more than the limit."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...] = ()
    cut: bool = False
    took_s: float = 0.0


class QueryError(InputError):
    """The database refused a query, or it passed its limits; the message is the database's, for whoever wrote the query."""


class Database(Protocol):
    """An open database that only reads. Not safe from several threads at once."""

    dialect: str

    def schema(self) -> Schema:
        """Tables, columns, keys and samples."""

    def run(self, sql: str, limits: Limits) -> Result:
        """The rows of a query that was checked. Raises QueryError."""

    def close(self) -> None:
        """Close it. Safe to call twice."""


def connect(url: str | Path, limits: Limits | None = None) -> Database:
    """Open a database to read: a path or ``sqlite:///``, ``duckdb:///``, ``postgresql://``, ``mysql://`` URL; or files (comma-separated, or a
    folder) of CSV, Parquet, Excel or JSON, each a table.

    Raises InputError for what is not there or no database, MissingExtraError without the driver.
    """
    text = str(url)
    scheme = urlsplit(text).scheme.partition("+")[0]
    if scheme in ("postgresql", "postgres", "mysql", "mariadb"):
        return _Server(text)
    path = Path(re.sub(r"^(?:sqlite|duckdb):/{2,3}", "", text)).expanduser() if scheme in ("sqlite", "duckdb") else None
    if path is not None:
        return _Sqlite(_there(path)) if scheme == "sqlite" else _Duck(path=_there(path), limits=limits or Limits())
    if scheme and len(scheme) > 1 and "://" in text:
        raise InputError(f"db must be sqlite, duckdb, postgresql or mysql; got {scheme!r}")
    paths = [Path(each.strip()).expanduser() for each in text.split(",")]
    if len(paths) == 1 and paths[0].is_dir():
        paths = sorted(each for each in paths[0].iterdir() if each.suffix.lower() in FILES)
        if not paths:
            raise InputError(f"{text} holds no table: none of {', '.join(FILES)}")
    if len(paths) == 1 and paths[0].suffix.lower() not in FILES:
        head = _there(paths[0]).open("rb").read(16)
        if head.startswith(b"SQLite format 3"):
            return _Sqlite(paths[0])
        if head[8:12] == b"DUCK":
            return _Duck(path=paths[0], limits=limits or Limits())
        raise InputError(f"{paths[0]} is neither a SQLite nor a DuckDB database, nor one of {', '.join(FILES)}")
    return _Duck(files=[_there(each) for each in paths], limits=limits or Limits())


def _there(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"no such database: {path}")
    return path


# ---- SQLite

_ALLOWED = {
    code
    for name in ("SQLITE_SELECT", "SQLITE_READ", "SQLITE_RECURSIVE")
    if (code := getattr(sqlite3, name, None)) is not None
}
_REFUSED_FUNCTIONS = frozenset(
    ["load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "zeroblob", "randomblob", "sqlite_log"]
)


class _Sqlite:
    dialect = "sqlite"

    def __init__(self, path: Path) -> None:
        self._deadline = 0.0
        try:
            self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
            self._connection.execute("PRAGMA query_only = ON")
            self._connection.execute("PRAGMA trusted_schema = OFF")
            self._connection.text_factory = lambda data: data.decode("utf-8", "replace")
            self._schema = _sqlite_schema(self._connection)
        except sqlite3.Error as error:
            raise InputError(f"{path} cannot be read as a SQLite database: {error}") from error
        self._connection.enable_load_extension(False) if hasattr(self._connection, "enable_load_extension") else None
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_VALUE_BYTES)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self._connection.set_authorizer(_authorize)
        self._connection.set_progress_handler(lambda: time.monotonic() > self._deadline, 1000)

    def schema(self) -> Schema:
        return self._schema

    def run(self, sql: str, limits: Limits) -> Result:
        start = time.monotonic()
        self._deadline = start + limits.timeout_s
        try:
            cursor = self._connection.execute(sql)
            rows = cursor.fetchmany(limits.rows + 1)
            names = tuple(each[0] for each in cursor.description or ())
            cursor.close()
        except (sqlite3.Error, sqlite3.Warning, OverflowError, MemoryError) as error:
            if time.monotonic() > self._deadline:
                raise QueryError(f"the query took longer than {limits.timeout_s:g} s") from error
            raise QueryError(str(error) or type(error).__name__) from error
        return _result(names, rows, limits, start)

    def close(self) -> None:
        self._connection.close()


def _authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    """SQLite asks for each thing that a statement would do."""
    if action in _ALLOWED:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in _REFUSED_FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _sqlite_schema(connection: sqlite3.Connection) -> Schema:
    listed = connection.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name"
    )
    tables = []
    for (name,) in listed.fetchmany(_MOST_TABLES):
        label = '"' + name.replace('"', '""') + '"'
        columns = []
        for _, column, kind, _, _, primary in connection.execute(f"PRAGMA table_info({label})"):
            columns.append(Column(column, kind, bool(primary), _samples(connection.execute, label, column)))
        keys: dict[int, list[tuple[str, str, str]]] = {}
        for number, _, to, here, there, *_ in connection.execute(f"PRAGMA foreign_key_list({label})"):
            keys.setdefault(number, []).append((to, here, there or here))
        found = tuple(
            ForeignKey(tuple(each[1] for each in parts), parts[0][0], tuple(each[2] for each in parts))
            for parts in keys.values()
        )
        tables.append(Table(name, tuple(columns), found))
    return Schema(tuple(tables))


def _samples(execute: Callable[[str], Any], table: str, column: str) -> tuple[str, ...]:
    label = '"' + column.replace('"', '""') + '"'
    try:  # among the first rows: a whole large table is not read for three values
        rows = execute(
            f"SELECT DISTINCT {label} FROM (SELECT {label} FROM {table} LIMIT 1000) AS few LIMIT 6"
        ).fetchall()
    except Exception:  # noqa: BLE001 - drivers raise what they like; a column without samples is still a column
        return ()
    return samples_of([row[0] for row in rows])


# ---- DuckDB


@dataclass
class _Duck:
    limits: Limits
    path: Path | None = None
    files: Sequence[Path] = ()
    dialect: str = field(default="duckdb", init=False)

    def __post_init__(self) -> None:
        import duckdb

        config: dict[str, Any] = {"memory_limit": f"{self.limits.memory_mb}MB", "autoinstall_known_extensions": "false"}
        try:
            if self.path is not None:
                self._connection = duckdb.connect(str(self.path), read_only=True, config=config)
            else:
                self._connection = duckdb.connect(":memory:", config=config)
                for file in self.files:
                    self._load(file)
            self._connection.execute("SET enable_external_access = false")
            self._connection.execute("SET lock_configuration = true")
            self._schema = self._read_schema()
        except duckdb.Error as error:
            raise InputError(
                f"{self.path or ', '.join(map(str, self.files))} cannot be read: {_first(error)}"
            ) from error

    def schema(self) -> Schema:
        return self._schema

    def run(self, sql: str, limits: Limits) -> Result:
        import duckdb

        start = time.monotonic()
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._connection.interrupt()

        timer = threading.Timer(limits.timeout_s, stop)
        timer.daemon = True
        timer.start()
        try:
            cursor = self._connection.execute(sql)
            rows = cursor.fetchmany(limits.rows + 1)
            names = tuple(each[0] for each in cursor.description or ())
        except (duckdb.Error, RuntimeError, MemoryError) as error:
            if late.is_set():
                raise QueryError(f"the query took longer than {limits.timeout_s:g} s") from error
            raise QueryError(_first(error)) from error
        finally:
            timer.cancel()
        return _result(names, rows, limits, start)

    def close(self) -> None:
        self._connection.close()

    def _load(self, file: Path) -> None:
        name = quoted(re.sub(r"\W+", "_", file.stem).strip("_") or "table")
        suffix = file.suffix.lower()
        if suffix == ".xlsx":
            self._load_workbook(file, name)
            return
        reader = {".parquet": "read_parquet", ".json": "read_json_auto", ".jsonl": "read_json_auto"}.get(
            suffix, "read_csv_auto"
        )
        self._connection.execute(f"CREATE TABLE {name} AS SELECT * FROM {reader}(?)", [str(file)])

    def _load_workbook(self, file: Path, name: str) -> None:
        """Each sheet as a table; the first row holds the names."""
        import openpyxl
        import pyarrow as pa

        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        try:
            for sheet in book.worksheets:
                rows = [row for row in sheet.iter_rows(values_only=True) if any(value is not None for value in row)]
                if len(rows) < 2:
                    continue
                heads = _heads(rows[0])
                columns = {
                    head: [row[at] if at < len(row) else None for row in rows[1:]] for at, head in enumerate(heads)
                }
                arrays = {head: _array(pa, values) for head, values in columns.items()}
                table = (
                    name
                    if len(book.worksheets) == 1
                    else quoted(f"{name.strip(chr(34))}_{sheet.title}".replace(" ", "_"))
                )
                self._connection.register("sheet_rows", pa.table(arrays))
                self._connection.execute(f"CREATE TABLE {table} AS SELECT * FROM sheet_rows")
                self._connection.unregister("sheet_rows")
        finally:
            book.close()

    def _read_schema(self) -> Schema:
        execute = self._connection.execute
        rows = execute(
            "SELECT table_name, column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = 'main' ORDER BY table_name, ordinal_position"
        ).fetchall()
        keys = execute(
            "SELECT table_name, constraint_type, constraint_column_names, referenced_table, referenced_column_names FROM duckdb_constraints()"
        ).fetchall()
        primary = {(table, column) for table, kind, columns, *_ in keys if kind == "PRIMARY KEY" for column in columns}
        tables = []
        for name in list(dict.fromkeys(row[0] for row in rows))[:_MOST_TABLES]:
            label = '"' + name.replace('"', '""') + '"'
            columns = tuple(
                Column(column, kind, (name, column) in primary, _samples(execute, label, column))
                for table, column, kind in rows
                if table == name
            )
            foreign = tuple(
                ForeignKey(tuple(own), to, tuple(there))
                for table, kind, own, to, there in keys
                if table == name and kind == "FOREIGN KEY"
            )
            tables.append(Table(name, columns, foreign))
        return Schema(tuple(tables))


def _heads(row: Sequence[Any]) -> list[str]:
    """Names for columns: each once, none empty."""
    out: list[str] = []
    for at, value in enumerate(row):
        name = str(value).strip() if value is not None else f"column_{at + 1}"
        out.append(name if name not in out else f"{name}_{at + 1}")
    return out


def _array(pa: Any, values: list[Any]) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # of several types: as text
        return pa.array([None if value is None else str(value) for value in values])


# ---- PostgreSQL and MySQL


class _Server:
    def __init__(self, url: str) -> None:
        import sqlalchemy as sa

        parsed = sa.make_url(url)
        kind = parsed.get_backend_name()
        self.dialect = "postgres" if kind in ("postgresql", "postgres") else "mysql"
        driver = "psycopg" if self.dialect == "postgres" else "pymysql"
        parsed = parsed.set(drivername=f"{'postgresql' if self.dialect == 'postgres' else 'mysql'}+{driver}")
        try:
            self._engine = sa.create_engine(parsed, pool_size=1, max_overflow=0, pool_pre_ping=True)
        except ModuleNotFoundError as error:
            extra = "postgres" if self.dialect == "postgres" else "mysql"
            raise MissingExtraError(
                f"{kind} needs the package {driver}", hint=f"pip install 'luthier[{extra}]'"
            ) from error
        try:
            self._schema = self._read_schema()
        except sa.exc.SQLAlchemyError as error:
            shown = parsed.render_as_string(hide_password=True)
            raise EngineError(f"cannot read {shown}: {_first(error)}") from error

    def schema(self) -> Schema:
        return self._schema

    def run(self, sql: str, limits: Limits) -> Result:
        import sqlalchemy as sa

        start = time.monotonic()
        try:
            with self._reading(limits.timeout_s) as connection:
                found = connection.exec_driver_sql(sql.replace("%", "%%") if self.dialect == "postgres" else sql)
                rows = [tuple(row) for row in found.fetchmany(limits.rows + 1)]
                return _result(tuple(found.keys()), rows, limits, start)
        except sa.exc.SQLAlchemyError as error:
            raise QueryError(_first(getattr(error, "orig", None) or error)) from error

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _reading(self, timeout_s: float) -> Any:
        """A transaction that the server itself keeps from writing, rolled back in any case."""
        with self._engine.connect() as connection:
            if self.dialect == "postgres":
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
                connection.exec_driver_sql(f"SET LOCAL statement_timeout = {round(1000 * timeout_s)}")
            else:
                connection.exec_driver_sql(f"SET SESSION MAX_EXECUTION_TIME = {round(1000 * timeout_s)}")
                connection.rollback()
                connection.exec_driver_sql("START TRANSACTION READ ONLY")
            try:
                yield connection
            finally:
                connection.rollback()

    def _read_schema(self) -> Schema:
        import sqlalchemy as sa

        inspector = sa.inspect(self._engine)
        tables = []
        with self._reading(30.0) as connection:
            for name in (inspector.get_table_names() + inspector.get_view_names())[:_MOST_TABLES]:
                primary = set(inspector.get_pk_constraint(name).get("constrained_columns") or ())
                label = self._engine.dialect.identifier_preparer.quote(name)
                columns = []
                for each in inspector.get_columns(name):
                    own = self._engine.dialect.identifier_preparer.quote(each["name"])
                    rows = connection.exec_driver_sql(f"SELECT {own} FROM {label} LIMIT 20").fetchall()
                    samples = samples_of([row[0] for row in rows])
                    kind = str(each["type"])
                    columns.append(
                        Column(each["name"], kind, each["name"] in primary, samples, each.get("comment") or "")
                    )
                keys = tuple(
                    ForeignKey(tuple(k["constrained_columns"]), k["referred_table"], tuple(k["referred_columns"]))
                    for k in inspector.get_foreign_keys(name)
                )
                tables.append(Table(name, tuple(columns), keys))
        return Schema(tuple(tables))


def _result(names: tuple[str, ...], rows: Sequence[Any], limits: Limits, start: float) -> Result:
    cut = len(rows) > limits.rows
    kept = tuple(tuple(row) for row in rows[: limits.rows])
    return Result(names, kept, cut, time.monotonic() - start)


def _first(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
