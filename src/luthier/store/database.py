"""The database: opening, migrating, and transactions that fail in words.

SQLite in the home folder by default (write-ahead log, so readers never wait for a writer); PostgreSQL when
``LUTHIER_DATABASE_URL`` says so. Everything above this file is plain SQLAlchemy Core and runs on both.
"""

from __future__ import annotations

import json
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc, text
from sqlalchemy.engine import make_url

from luthier.core.errors import MissingExtraError, StoreError
from luthier.core.model import ModelRecord
from luthier.store.home import Home, home
from luthier.store.tables import battles, edges, feedback, metadata, models, runs, traces

__all__ = [
    "HEAD",
    "Store",
    "battles",
    "edges",
    "feedback",
    "metadata",
    "models",
    "open_store",
    "runs",
    "to_json",
    "traces",
]

HEAD = "0008"
"""The newest migration. Written here so that opening a current store needs no alembic; a test holds it to the files."""

BUSY_TIMEOUT_MS = 30_000
_MIGRATION_LOCK = 7_305_113  # any constant: PostgreSQL's advisory lock that lets one process migrate at a time


@dataclass(frozen=True)
class Store:
    """A home and its database. Share it between threads; open one a process."""

    home: Home
    engine: Engine
    promised: Mapping[str, ModelRecord] = field(default_factory=dict, compare=False)
    """Models that are not made yet but will be, by name: found like others, so that what follows them can be checked before."""

    def with_promised(self, records: Mapping[str, ModelRecord]) -> Store:
        """The same store, in which ``records`` are found too. Nothing is written."""
        return replace(self, promised=dict(records))

    @staticmethod
    def open(root: Path | str | None = None) -> Store:
        """Open the store at ``root`` (``LUTHIER_HOME``, ``~/.luthier``), migrating it when it is behind.

        Raises StoreError when the database is damaged, cannot be reached, or was written by a newer Luthier.
        """
        place = home(root)
        store = Store(place, _engine(place.database_url))
        if store.version() != HEAD:
            store._migrate()
        return store

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for queries."""
        with self._errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, committed at the end, undone on any error.

        On SQLite it takes the write lock at once (BEGIN IMMEDIATE): a transaction that reads first and writes later would
        otherwise fail, without waiting, when another process wrote in between.
        """
        with self._errors(), self.engine.connect() as connection:
            connection.execution_options(luthier_write=True)
            with connection.begin():
                yield connection

    def version(self) -> str | None:
        """The migration that the database is at, None when it is empty."""
        with self._errors(), self.engine.connect() as connection:
            return _version(connection)

    def _migrate(self) -> None:
        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            at = _version(connection)  # again: somebody may have migrated while we waited for the lock
            if at is not None and at > HEAD:
                raise StoreError(
                    f"the store {self.engine.url.render_as_string()} is at schema {at}, newer than this Luthier knows ({HEAD})",
                    hint="pip install --upgrade luthier",
                )
            if at != HEAD:
                from luthier.store.migrations import upgrade

                upgrade(connection)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (exc.OperationalError, exc.DatabaseError) as error:
            if isinstance(error, exc.IntegrityError | exc.ProgrammingError | exc.DataError):
                raise
            raise _explain(self, error) from error


def _version(connection: Connection) -> str | None:
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    row = connection.execute(text("SELECT version_num FROM alembic_version")).first()
    return str(row[0]) if row else None


def _explain(store: Store, error: exc.DBAPIError) -> StoreError:
    where = store.engine.url.render_as_string()  # hides the password
    reason = str(error.orig).strip()
    lower = reason.lower()
    if "locked" in lower or "busy" in lower:
        hint = f"another process has held the write lock for {BUSY_TIMEOUT_MS // 1000} s; end it, or try again"
    elif "full" in lower:
        hint = "the disk is full: free space there, or move LUTHIER_HOME to a larger disk; nothing was lost"
    elif "malformed" in lower or "not a database" in lower:
        hint = "the file is damaged: restore it from a backup, or move it away to start an empty store"
    elif "readonly" in lower or "unable to open" in lower:
        hint = "make the file and its folder writable, or choose another home: export LUTHIER_HOME=/a/folder/of/yours"
    else:
        hint = "check the database server and LUTHIER_DATABASE_URL"
    return StoreError(f"the store {where} refused: {reason}", hint=hint)


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(
            parsed, json_serializer=to_json, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, pool_size=8
        )
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    try:
        return create_engine(parsed, json_serializer=to_json, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"LUTHIER_DATABASE_URL asks for {parsed.drivername}, whose driver {error.name!r} is not installed",
            hint="pip install 'luthier[postgres]'",
        ) from error


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves, see _begin_sqlite
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute(
        "PRAGMA synchronous = NORMAL"
    )  # with WAL: a crash of the process loses nothing, of the machine only the tail
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("luthier_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text of plain values, NumPy and torch numbers and paths; NaN and infinity become null, as JSON has neither."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain, indent=indent)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_plain, indent=indent)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "item"):  # a NumPy or torch number
        return _finite(value.item())
    raise TypeError(f"cannot store a {type(value).__name__} as JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


_KEPT = 8  # open stores a process keeps; more than one is seen in tests only
_opened: OrderedDict[tuple[int, str, str], Store] = OrderedDict()
_lock = Lock()


def open_store(root: Path | str | None = None) -> Store:
    """The store at ``root``, opened once a process (a forked child opens its own: SQLite handles do not survive a fork)."""
    place = home(root)
    key = (os.getpid(), str(place.root), place.database_url)
    with _lock:
        store = _opened.get(key)
        if store is None:
            store = _opened[key] = Store.open(place.root)
        _opened.move_to_end(key)
        while len(_opened) > _KEPT:
            _, oldest = _opened.popitem(last=False)
            oldest.engine.dispose()
        return store
