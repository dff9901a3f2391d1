"""PostgreSQL and MySQL inside the process that asks them: transactions that the server itself keeps from writing, its own time limit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier.apps.sql._samples import MOST_TABLES, Sampler
from luthier.apps.sql._values import Kept
from luthier.apps.sql.limits import LostError, QueryError
from luthier.apps.sql.schema import Column, ForeignKey, Schema, Table
from luthier.core.errors import EngineError, InputError, MissingExtraError

_DRIVERS = {"postgres": ("postgresql+psycopg", "psycopg", "postgres"), "mysql": ("mysql+pymysql", "pymysql", "mysql")}


def open_server(target: Mapping[str, Any]) -> HeldServer:
    """A connection to the server of ``target``. Raises MissingExtraError without its driver, EngineError when it does not answer."""
    import sqlalchemy as sa

    name, package, extra = _DRIVERS[target["dialect"]]
    try:
        url = sa.make_url(target["url"]).set(drivername=name)
        engine = sa.create_engine(url, poolclass=sa.pool.StaticPool)
    except ModuleNotFoundError as error:
        message = f"{target['dialect']} needs the package {package}"
        raise MissingExtraError(message, hint=f"pip install 'luthier[{extra}]'") from error
    except (sa.exc.ArgumentError, ValueError) as error:
        raise InputError(
            "db is not a URL that can be read", hint="postgresql://USER:PASSWORD@HOST:PORT/NAME"
        ) from error
    try:
        with engine.connect():
            pass
        held = {"postgres": HeldPostgres, "mysql": HeldMysql}[target["dialect"]](engine, target)
        held.prepare()
        return held
    except sa.exc.SQLAlchemyError as error:
        shown = url.render_as_string(hide_password=True)
        raise EngineError(f"cannot read {shown}: {_first(getattr(error, 'orig', None) or error)}") from error


class HeldServer:
    """What both have in common. ``_raw`` is the driver's connection, the only one."""

    quote = '"'

    def __init__(self, engine: Any, target: Mapping[str, Any]) -> None:
        self._engine, self._target = engine, target
        self._raw: Any = engine.raw_connection().driver_connection

    def prepare(self) -> None:
        """Settings of the session."""

    def reading(self, timeout_s: float, rows: int = 1000) -> contextlib.AbstractContextManager[Any]:
        """A cursor in a transaction that only reads, rolled back in any case; ``rows``: how many are wanted at most."""
        raise NotImplementedError

    def run(self, sql: str, timeout_s: float, kept: Kept) -> list[str]:
        """Fill ``kept``; the names of the columns."""
        raise NotImplementedError

    def _fetch(self, sql: str, timeout_s: float) -> Sequence[Sequence[Any]]:
        with self.reading(timeout_s) as cursor:
            cursor.execute(sql)
            rows: Sequence[Sequence[Any]] = cursor.fetchall()
            return rows

    def schema(self) -> dict[str, Any]:
        """Tables and views of the connection's own schema, with columns, comments, keys and samples."""
        import sqlalchemy as sa

        inspector = sa.inspect(self._engine)
        names = sorted({*inspector.get_table_names(), *inspector.get_view_names()})[:MOST_TABLES]
        described = [
            (name, inspector.get_columns(name), inspector.get_foreign_keys(name), self._comment(inspector, name))
            for name in names
        ]
        primary = {name: set(inspector.get_pk_constraint(name).get("constrained_columns") or ()) for name in names}
        with contextlib.suppress(Exception):
            self._raw.rollback()
        sampler = Sampler(self._fetch, self._target["samples"], self._target["private"], self.quote)
        tables = []
        for name, listed, pointers, comment in described:
            samples = sampler.of(name, [each["name"] for each in listed])
            columns = tuple(
                Column(
                    each["name"], str(each["type"]), each["name"] in primary[name], samples.get(each["name"], ()), each.get("comment") or ""
                )
                for each in listed
            )  # fmt: skip
            keys = tuple(
                ForeignKey(tuple(key["constrained_columns"]), key["referred_table"], tuple(key["referred_columns"]))
                for key in pointers
            )
            tables.append(Table(name, columns, keys, description=comment))
        return Schema(tuple(tables)).as_dict()

    @staticmethod
    def _comment(inspector: Any, name: str) -> str:
        with contextlib.suppress(Exception):
            return str(inspector.get_table_comment(name).get("text") or "")
        return ""


class HeldPostgres(HeldServer):
    """PostgreSQL: a cursor on the server, so that only the rows that are kept are sent."""

    def prepare(self) -> None:
        """Reading is the session's rule, not only each transaction's."""
        self._raw.rollback()
        self._raw.autocommit = False
        self._raw.read_only = True
        with self._raw.cursor() as cursor:
            cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
            cursor.execute("SET standard_conforming_strings = on")
            cursor.execute("SET lock_timeout = '5s'")
        self._raw.commit()

    @contextlib.contextmanager
    def reading(self, timeout_s: float, rows: int = 1000) -> Iterator[Any]:
        """See ``HeldServer``."""
        try:
            with self._raw.cursor() as cursor:
                cursor.execute(f"SET LOCAL statement_timeout = {max(round(1000 * timeout_s), 1)}")
                yield cursor
        finally:
            with contextlib.suppress(Exception):
                self._raw.rollback()

    def run(self, sql: str, timeout_s: float, kept: Kept) -> list[str]:
        """See ``HeldServer``."""
        import psycopg

        try:
            with self.reading(timeout_s) as cursor:
                # prepared: the server takes one statement only, whatever the text holds
                cursor.execute(f"DECLARE luthier_rows NO SCROLL CURSOR FOR {sql}", prepare=True)
                while True:
                    cursor.execute(f"FETCH {kept.fetched} FROM luthier_rows")
                    names = [each.name for each in cursor.description or ()]
                    if not kept.add(cursor.fetchall()):
                        return names
        except psycopg.errors.QueryCanceled as error:
            raise QueryError(f"the query took longer than {timeout_s:g} s") from error
        except psycopg.Error as error:
            if self._raw.closed or self._raw.broken:
                raise LostError(f"the connection to the server is gone: {_first(error)}") from error
            raise QueryError(_first(error)) from error


class HeldMysql(HeldServer):
    """MySQL and MariaDB: rows are read as the server sends them."""

    quote = "`"
    _GONE = (0, 2006, 2013, 2055)
    _LATE = (1028, 1317, 1969, 3024)

    def prepare(self) -> None:
        """Reading is the session's rule; strings are written as ``apps.sql.check`` writes them."""
        with self._raw.cursor() as cursor:
            cursor.execute("SELECT VERSION()")
            self._mariadb = "mariadb" in str(cursor.fetchone()[0]).lower()
            cursor.execute("SET SESSION sql_mode = 'STRICT_TRANS_TABLES'")
            cursor.execute("SET SESSION TRANSACTION READ ONLY")
        self._raw.rollback()

    @contextlib.contextmanager
    def reading(self, timeout_s: float, rows: int = 1000) -> Iterator[Any]:
        """See ``HeldServer``."""
        from pymysql.cursors import SSCursor  # type: ignore[import-untyped]

        limit = (
            f"max_statement_time = {timeout_s:.3f}"
            if self._mariadb
            else f"max_execution_time = {round(1000 * timeout_s)}"
        )
        with self._raw.cursor() as cursor:
            cursor.execute(f"SET SESSION {limit}, sql_select_limit = {rows + 1}")
            cursor.execute("START TRANSACTION READ ONLY")
        cursor = self._raw.cursor(SSCursor)
        try:
            yield cursor
        finally:
            with contextlib.suppress(Exception):  # closing reads what is left of a result, which the time limit ends
                cursor.close()
            with contextlib.suppress(Exception):
                self._raw.rollback()

    def run(self, sql: str, timeout_s: float, kept: Kept) -> list[str]:
        """See ``HeldServer``."""
        import pymysql  # type: ignore[import-untyped]

        try:
            with self.reading(timeout_s, kept.most) as cursor:
                cursor.execute(sql)
                names = [each[0] for each in cursor.description or ()]
                while kept.add(cursor.fetchmany(kept.fetched)):
                    pass
                return names
        except pymysql.MySQLError as error:
            code = error.args[0] if error.args else 0
            if code in self._LATE:
                raise QueryError(f"the query took longer than {timeout_s:g} s") from error
            if code in self._GONE:
                raise LostError(f"the connection to the server is gone: {_first(error)}") from error
            raise QueryError(str(error.args[1]) if len(error.args) > 1 else _first(error)) from error


def _first(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
