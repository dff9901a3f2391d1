"""SQLite inside the process that holds it: opened to read, an authorizer that knows what reading is, a deadline."""

# ruff: noqa: SIM905 - a list of a hundred words is read, not counted
from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.apps.sql._samples import MOST_TABLES, Sampler
from luthier.apps.sql._values import Kept
from luthier.apps.sql.limits import QueryError
from luthier.apps.sql.schema import Column, ForeignKey, Schema, Table
from luthier.core.errors import InputError

_MOST_VALUE_BYTES = 50_000_000
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_FUNCTIONS = frozenset(
    """abs acos acosh asin asinh atan atan2 atanh avg ceil ceiling changes char coalesce concat concat_ws cos cosh count cume_dist
    current_date current_time current_timestamp date datetime degrees dense_rank exp first_value floor format glob group_concat hex ifnull iif
    instr json json_array json_array_length json_extract json_group_array json_group_object json_object json_quote json_type json_valid
    julianday lag last_value lead length like likelihood likely ln log log10 log2 lower ltrim max median min mod nth_value ntile nullif
    octet_length percent_rank pi pow power printf quote radians random rank replace round row_number rtrim sign sin sinh soundex sqrt
    strftime string_agg substr substring subtype sum tan tanh time timediff total trim trunc typeof unhex unicode unixepoch unlikely upper
    -> ->>""".split()
)  # fmt: skip
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: _MOST_VALUE_BYTES, sqlite3.SQLITE_LIMIT_ATTACHED: 0, sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000, sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100, sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
}  # fmt: skip


def open_sqlite(target: Mapping[str, Any], memory_mb: int) -> HeldSqlite:
    """The database of ``target``. Raises InputError for a file that is none."""
    path = target["paths"][0]
    try:
        return HeldSqlite(_connected(path, memory_mb), target)
    except sqlite3.Error as error:
        raise InputError(f"{path} cannot be read as a SQLite database: {error}") from error


def _connected(path: str, memory_mb: int) -> sqlite3.Connection:
    """A connection that reads. A database with a write-ahead log in a folder that nobody may write to is read as one that does not change."""
    uri = f"{Path(path).as_uri()}?mode=ro"
    for last, address in ((False, uri), (True, f"{uri}&immutable=1")):
        connection = sqlite3.connect(address, uri=True, isolation_level=None)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError as error:
            connection.close()
            if last or "unable to open" not in str(error):
                raise
            continue
        break
    for pragma in (
        "query_only = ON",
        "trusted_schema = OFF",
        "temp_store = MEMORY",
        "mmap_size = 0",
        "cell_size_check = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute(f"PRAGMA hard_heap_limit = {memory_mb << 20}")
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    return connection


class HeldSqlite:
    """See the module."""

    def __init__(self, connection: sqlite3.Connection, target: Mapping[str, Any]) -> None:
        self._connection, self._target = connection, target
        self._deadline = time.monotonic() + 60.0
        connection.set_progress_handler(lambda: time.monotonic() > self._deadline, 1000)
        self._tables = self._names()  # virtual tables are set up by now
        for limit, most in _LIMITS.items():
            connection.setlimit(limit, most)

    def _names(self) -> list[str]:
        listed = self._connection.execute(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name"
        )
        return [name for (name,) in listed.fetchmany(MOST_TABLES)]

    def schema(self) -> dict[str, Any]:
        """Tables and views with columns, keys and samples."""
        return Schema(tuple(table for name in self._tables if (table := self._table(name)) is not None)).as_dict()

    def _table(self, name: str) -> Table | None:
        label = '"' + name.replace('"', '""') + '"'
        try:
            listed = list(self._connection.execute(f"PRAGMA table_info({label})"))
            pointers = list(self._connection.execute(f"PRAGMA foreign_key_list({label})"))
        except sqlite3.Error:  # a view over what is gone, a virtual table whose module is not here
            return None
        if not hasattr(self, "_sampler"):
            self._sampler = Sampler(self._fetch, self._target["samples"], self._target["private"])
        samples = self._sampler.of(name, [row[1] for row in listed])
        columns = tuple(Column(row[1], row[2], bool(row[5]), samples.get(row[1], ())) for row in listed)
        keys: dict[int, list[tuple[str, str, str]]] = {}
        for number, _, to, here, there, *_ in pointers:
            keys.setdefault(number, []).append((to, here, there or here))
        found = tuple(
            ForeignKey(tuple(each[1] for each in parts), parts[0][0], tuple(each[2] for each in parts))
            for parts in keys.values()
        )
        return Table(name, columns, found)

    def _fetch(self, sql: str, timeout_s: float) -> Sequence[Sequence[Any]]:
        self._deadline = time.monotonic() + timeout_s
        try:
            return self._connection.execute(sql).fetchall()
        finally:
            self._deadline = time.monotonic() + 60.0

    def run(self, sql: str, timeout_s: float, kept: Kept) -> list[str]:
        """Fill ``kept``; the names of the columns."""
        self._connection.set_authorizer(_authorize)
        self._deadline = time.monotonic() + timeout_s
        cursor = self._connection.cursor()
        try:
            cursor.execute(sql)
            while kept.add(cursor.fetchmany(kept.fetched)):
                pass
            return [each[0] for each in cursor.description or ()]
        except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
            if time.monotonic() > self._deadline:
                raise QueryError(f"the query took longer than {timeout_s:g} s") from error
            raise QueryError(str(error) or type(error).__name__) from error
        finally:
            cursor.close()


def _authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    """SQLite asks for each thing that a statement would do."""
    if action in _READING:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
