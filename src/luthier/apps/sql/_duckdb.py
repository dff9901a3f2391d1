"""DuckDB inside the process that holds it: a database opened to read, or files loaded as tables; nothing outside can be reached."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from luthier.apps.sql._files import load
from luthier.apps.sql._samples import MOST_TABLES, Sampler
from luthier.apps.sql._values import Kept
from luthier.apps.sql.limits import QueryError
from luthier.apps.sql.schema import Column, ForeignKey, Schema, Table
from luthier.core.errors import InputError

_LOCKED = (
    "SET enable_external_access = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET lock_configuration = true",
)


def open_duckdb(target: Mapping[str, Any], memory_mb: int) -> HeldDuckdb:
    """The database or the files of ``target``. Raises InputError for what cannot be read."""
    config: dict[str, Any] = {
        "memory_limit": f"{memory_mb}MB", "threads": 2, "temp_directory": "", "autoinstall_known_extensions": "false",
    }  # fmt: skip
    names = ", ".join(target["paths"])
    try:
        if target["kind"] == "duckdb":
            connection = duckdb.connect(target["paths"][0], read_only=True, config=config)
        else:
            connection = duckdb.connect(":memory:", config=config)
            load(connection, target["paths"])
        for statement in _LOCKED:
            connection.execute(statement)
        return HeldDuckdb(connection, target)
    except (duckdb.Error, RuntimeError) as error:
        if "Could not set lock" in str(error):
            raise InputError(f"{names} is being written by another process: {first_line(error)}") from error
        raise InputError(f"{names} cannot be read: {first_line(error)}") from error


class HeldDuckdb:
    """See the module."""

    def __init__(self, connection: Any, target: Mapping[str, Any]) -> None:
        self._connection, self._target = connection, target

    def schema(self) -> dict[str, Any]:
        """Tables and views with columns, keys and samples."""
        execute = self._connection.execute
        rows = execute(
            "SELECT table_name, column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = 'main' AND table_catalog = current_database() ORDER BY table_name, ordinal_position"
        ).fetchall()
        keys = execute(
            "SELECT table_name, constraint_type, constraint_column_names, referenced_table, referenced_column_names FROM duckdb_constraints()"
        ).fetchall()
        primary = {(table, column) for table, kind, columns, *_ in keys if kind == "PRIMARY KEY" for column in columns}
        sampler = Sampler(self._fetch, self._target["samples"], self._target["private"])
        tables = []
        for name in list(dict.fromkeys(row[0] for row in rows))[:MOST_TABLES]:
            own = [(column, kind) for table, column, kind in rows if table == name]
            samples = sampler.of(name, [column for column, _ in own])
            columns = tuple(
                Column(column, kind, (name, column) in primary, samples.get(column, ())) for column, kind in own
            )
            foreign = tuple(
                ForeignKey(tuple(here), to, tuple(there))
                for table, kind, here, to, there in keys
                if table == name and kind == "FOREIGN KEY"
            )
            tables.append(Table(name, columns, foreign))
        return Schema(tuple(tables)).as_dict()

    def _fetch(self, sql: str, timeout_s: float) -> Sequence[Sequence[Any]]:
        with _Alarm(self._connection, timeout_s):
            rows: list[tuple[Any, ...]] = self._connection.execute(sql).fetchall()
        return rows

    def run(self, sql: str, timeout_s: float, kept: Kept) -> list[str]:
        """Fill ``kept``; the names of the columns."""
        with _Alarm(self._connection, timeout_s) as alarm:
            try:
                (statement,) = self._connection.extract_statements(sql)
                if statement.type != duckdb.StatementType.SELECT:
                    raise QueryError(f"only SELECT is run; got {statement.type.name}")
                cursor = self._connection.execute(statement)
                names = [each[0] for each in cursor.description or ()]
                while kept.add(cursor.fetchmany(kept.fetched)):
                    pass
            except QueryError:
                raise
            except duckdb.OutOfMemoryException as error:
                raise MemoryError from error
            except (duckdb.Error, RuntimeError, ValueError, OverflowError) as error:
                if alarm.rang:
                    raise QueryError(f"the query took longer than {timeout_s:g} s") from error
                if "bad_alloc" in str(error):
                    raise MemoryError from error
                raise QueryError(first_line(error)) from error
        return names


class _Alarm:
    """Interrupts the connection when the time is over; ``rang`` says that it was."""

    def __init__(self, connection: Any, timeout_s: float) -> None:
        self._connection, self.rang = connection, False
        self._timer = threading.Timer(timeout_s, self._ring)
        self._timer.daemon = True

    def _ring(self) -> None:
        self.rang = True
        self._connection.interrupt()

    def __enter__(self) -> _Alarm:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def first_line(error: object) -> str:
    """What an error says, without the lines that draw."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    near = next((line.strip() for line in lines[1:] if line.startswith(("Candidate", "Did you mean"))), "")
    return f"{lines[0]} {near}".strip()
