"""Databases that can only be read: SQLite, DuckDB, PostgreSQL, MySQL, and files as tables.

Each is held by a process of its own (``worker``), with limits of time and memory; it is killed when a query does not end, and started anew
for the next one. This file says what is to be opened, and asks that process.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from luthier.apps.sql._values import decode
from luthier.apps.sql.limits import Limits, LostError, QueryError, Result
from luthier.apps.sql.process import Process
from luthier.apps.sql.schema import Schema
from luthier.core.errors import InputError

FILES = (".csv", ".tsv", ".parquet", ".xlsx", ".json", ".jsonl")
_SERVERS = {"postgresql": "postgres", "postgres": "postgres", "mysql": "mysql", "mariadb": "mysql"}
_FRESH_S = 300.0
_MOST_FILES = 200


@dataclass(frozen=True)
class Target:
    """What is opened: ``kind`` is sqlite, duckdb, files or server; ``samples`` values of each column are read, none of those that ``private``
    names (``column``, ``table.column``, with ``*``)."""

    kind: str
    dialect: str
    paths: tuple[str, ...] = ()
    url: str = ""
    samples: int = 3
    private: tuple[str, ...] = ()

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Changes when a file does."""
        found = []
        for path in map(Path, self.paths):
            stat = path.stat() if path.exists() else None
            found.append((stat.st_mtime_ns, stat.st_size) if stat else (0, 0))
        return tuple(found)


class Database:
    """An open database that only reads. Several threads may ask it; one query runs at a time."""

    def __init__(self, target: Target, limits: Limits) -> None:
        self.target = target
        self.dialect = target.dialect
        self.limits = limits
        self._lock = threading.Lock()
        self._process = Process(target, limits.memory_mb)
        self._read()

    def schema(self) -> Schema:
        """Tables, columns, keys and samples; read again when a file has changed, or after five minutes."""
        with self._lock:
            old = time.monotonic() - self._read_at > _FRESH_S
            if self.target.stamp() != self._stamp or (old and self.target.kind != "files"):
                self._process.kill()
                self._read()
            return self._schema

    def run(self, sql: str, limits: Limits | None = None) -> Result:
        """The rows of a query that was checked (``apps.sql.check``). Raises QueryError, EngineError when a server is gone."""
        limits = limits or self.limits
        request = {
            "sql": sql,
            "timeout_s": limits.timeout_s,
            "rows": limits.rows,
            "cell_characters": limits.cell_characters,
            "result_bytes": limits.result_bytes,
        }
        start = time.monotonic()
        with self._lock:
            try:
                said = self._process.ask(request, limits.timeout_s, limits.result_bytes)
            except LostError:
                self._process.kill()  # a server was started anew, or forgot an idle connection: once more
                said = self._process.ask(request, limits.timeout_s, limits.result_bytes)
        if "error" in said:
            raise QueryError(said["error"])
        rows = tuple(tuple(map(decode, row)) for row in said["rows"])
        return Result(tuple(said["columns"]), rows, said["cut"], time.monotonic() - start)

    @property
    def pid(self) -> int | None:
        """Of the process that holds it, while there is one."""
        return self._process.pid

    def close(self) -> None:
        """End its process. Safe to call twice."""
        self._process.kill()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        self._stamp = self.target.stamp()
        self._schema = Schema.from_dict(self._process.start(with_schema=True)["schema"])
        self._read_at = time.monotonic()


def connect(
    url: str | Path, limits: Limits | None = None, *, samples: int = 3, private: Sequence[str] = ()
) -> Database:
    """Open a database to read: a path or ``sqlite:///``, ``duckdb:///``, ``postgresql://``, ``mysql://`` URL; or files (comma-separated, or a
    folder) of CSV, Parquet, Excel or JSON, each a table.

    ``samples`` values of each column are read for the schema, none of the columns that ``private`` names.

    Raises InputError for what is not there or no database, MissingExtraError without the driver, EngineError for a server that does not answer.
    """
    return Database(replace(read_target(str(url)), samples=samples, private=tuple(private)), limits or Limits())


def read_target(text: str) -> Target:
    """What ``connect`` would open. Raises InputError."""
    if not text.strip():
        raise InputError(
            "db must not be empty: a file, a folder of files, or a URL (sqlite, duckdb, postgresql, mysql)"
        )
    scheme = urlsplit(text).scheme.partition("+")[0]
    if scheme in _SERVERS:
        return Target("server", _SERVERS[scheme], url=text)
    if scheme in ("sqlite", "duckdb"):
        path = _there(Path(unquote(re.sub(r"^\w+:(?:///|//|)", "", text))))
        return Target(scheme, scheme, (str(path.absolute()),))
    if "://" in text:
        raise InputError(f"db must be a file or a URL of sqlite, duckdb, postgresql or mysql; got {scheme!r}")
    whole = Path(text).expanduser()
    paths = [whole] if whole.exists() else [Path(each.strip()).expanduser() for each in text.split(",")]
    if len(paths) == 1 and paths[0].is_dir():
        paths = sorted(each for each in paths[0].iterdir() if each.suffix.lower() in FILES and each.is_file())
        if not 1 <= len(paths) <= _MOST_FILES:
            raise InputError(f"{text} must hold 1 to {_MOST_FILES} files of {', '.join(FILES)}; it holds {len(paths)}")
    elif len(paths) == 1 and paths[0].suffix.lower() not in FILES:
        kind = _kind(_there(paths[0]))
        return Target(kind, kind, (str(paths[0].absolute()),))
    for each in paths:
        if _there(each).suffix.lower() not in FILES:
            raise InputError(f"{each} is not one of {', '.join(FILES)}; a database is given by itself")
    return Target("files", "duckdb", tuple(str(each.absolute()) for each in paths))


def _there(path: Path) -> Path:
    path = path.expanduser()
    if not path.is_file():
        raise InputError(f"no such database: {path}")
    return path


def _kind(path: Path) -> str:
    """sqlite or duckdb, by how the file begins."""
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"SQLite format 3\0"):
        return "sqlite"
    if head[8:12] == b"DUCK":
        return "duckdb"
    raise InputError(f"{path} is neither a SQLite nor a DuckDB database, nor one of {', '.join(FILES)}")


__all__ = ["FILES", "Database", "Limits", "QueryError", "Result", "Target", "connect", "read_target"]
