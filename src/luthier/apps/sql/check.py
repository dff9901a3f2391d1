"""Generated SQL is run only when it is one query that reads: parsed, each of its parts on a list of what is allowed, written anew.

This is the first of three guards: the connection itself cannot write (``apps.sql.connect``), and the process that holds it is bound in
time, memory and files. What is run is not the text that came but what was understood of it, so nothing hides in comments or encodings.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from luthier.apps.sql._allowed import NAMED, PARTS, REFUSED_TYPES, TYPED
from luthier.apps.sql.schema import Schema, Table
from luthier.core.errors import InputError, did_you_mean

MOST_CHARACTERS = 20_000
MOST_PARTS = 5_000
DIALECTS = ("sqlite", "duckdb", "postgres", "mysql")
_HOME_SCHEMAS = {"sqlite": "main", "duckdb": "main", "postgres": "public", "mysql": ""}
_ROW_IDS = {"rowid", "_rowid_", "oid"}


def check(sql: str, dialect: str, schema: Schema) -> str:
    """The one query in ``sql``, as it will be run. Raises InputError that says what is not allowed in it.

    ``dialect`` is sqlite, duckdb, postgres or mysql. Tables and columns must be the schema's, or named in the query itself.
    """
    query = _parsed(sql, dialect)
    _check_parts(query)
    _check_tables(query, schema, dialect)
    _check_columns(query, schema, dialect)
    written = str(query.sql(dialect=dialect, comments=False))
    _check_parts(_parsed(written, dialect))  # what was written is what was allowed
    return written


def _parsed(sql: str, dialect: str) -> Any:
    if dialect not in DIALECTS:
        raise InputError(f"dialect must be one of {', '.join(DIALECTS)}; got {dialect!r}")
    if len(sql) > MOST_CHARACTERS:
        raise InputError(f"the query has {len(sql):,} characters; at most {MOST_CHARACTERS:,} are run")
    if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", sql):
        raise InputError("the query holds a control character")
    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    try:
        statements = [each for each in sqlglot.parse(sql, read=dialect) if each is not None]
    except (SqlglotError, RecursionError, ValueError) as error:
        said = re.sub(r"\x1b\[\d*m", "", str(error).splitlines()[0] if str(error) else repr(error))
        raise InputError(f"the query cannot be parsed: {said}") from error
    statements = [each for each in statements if type(each).__name__ != "Semicolon"]  # what stands after the last one
    if len(statements) != 1:
        raise InputError(f"exactly one query is run; got {len(statements)} statements")
    query = statements[0]
    if not isinstance(query, exp.Select | exp.SetOperation):
        raise InputError(f"only SELECT is run; got {type(query).__name__.upper()}")
    return query


def _check_parts(query: Any) -> None:
    count = 0
    for node in query.walk():
        name = type(node).__name__
        count += 1
        if isinstance(node, exp.Anonymous):
            _check_name(str(node.this), node)
        elif isinstance(node, exp.DataType):
            if name != "DataType" or getattr(node.this, "name", "") in REFUSED_TYPES:
                raise InputError(f"the type {node.sql()[:60]} is not on the list of those that are cast to")
        elif isinstance(node, exp.Func) and not isinstance(node, exp.Connector):
            if name not in TYPED:
                raise InputError(f"the function {node.sql_name().lower()} is not on the list of those that are run")
        elif name not in PARTS and name not in TYPED:
            raise InputError(f"{name.upper()} is not allowed in a query that only reads")
        if isinstance(node, exp.Dot) and isinstance(node.expression, exp.Func):
            raise InputError(f"functions of other schemas are not run; got {node.sql()[:60]}")
    if count > MOST_PARTS:
        raise InputError(f"the query has {count:,} parts; at most {MOST_PARTS:,} are run")


def _check_name(name: str, node: Any) -> None:
    if name.lower() not in NAMED:
        raise InputError(f"the function {name[:60].lower()} is not on the list of those that are run")


def _check_tables(query: Any, schema: Schema, dialect: str) -> None:
    """Each name that is read from is a table of the schema or one that the query itself makes."""
    made = {cte.alias.lower() for cte in query.find_all(exp.CTE)}
    for table in query.find_all(exp.Table):
        if not isinstance(table.this, exp.Identifier):
            raise InputError(f"tables are read by name; got {table.sql()[:60]}")
        name = table.name
        if table.catalog or (table.db and table.db.lower() != _HOME_SCHEMAS[dialect]):
            raise InputError(f"tables of other databases are not read; got {table.sql()[:60]}")
        if schema.table(name) is None and (table.db or name.lower() not in made):
            names = [each.name for each in schema.tables]
            raise InputError(f"table {name!r} is not in this database. {did_you_mean(name, names)}")


def _check_columns(query: Any, schema: Schema, dialect: str) -> None:
    """Each column is one of the tables', or named in the query. SQLite takes a quoted name that is none for text: so does this."""
    named = {cte.alias.lower() for cte in query.find_all(exp.CTE)}
    named |= {
        each.alias.lower() for each in query.find_all(exp.Alias, exp.TableAlias, exp.Subquery, exp.Table) if each.alias
    }
    named |= {
        column.name.lower() for each in query.find_all(exp.TableAlias) for column in each.args.get("columns") or ()
    }
    named |= {each.name.lower() for aliases in query.find_all(exp.Aliases) for each in aliases.expressions}
    named |= {each.sql_name().lower() for each in query.find_all(exp.Func) if not isinstance(each, exp.Anonymous)}
    named |= {str(each.this).lower() for each in query.find_all(exp.Anonymous)}
    named |= _ROW_IDS if dialect == "sqlite" else set()
    sources: dict[str, list[Table]] = {}
    for table in query.find_all(exp.Table):
        found = schema.table(table.name)
        if found is not None:
            sources.setdefault((table.alias or table.name).lower(), []).append(found)
    read = {each.name.lower(): each for tables in sources.values() for each in tables}
    known = {column.name.lower() for each in read.values() for column in each.columns}
    for column in query.find_all(exp.Column):
        identifier = column.this
        if not isinstance(identifier, exp.Identifier):
            continue
        name = column.name.lower()
        if name in known or name in named or name in read or (identifier.quoted and not column.table):
            continue
        if column.table and (column.table.lower() in known or column.table.lower() in named - set(sources)):
            continue  # a field of a structure, a column of a subquery
        names = [each.name for table in read.values() for each in table.columns]
        raise InputError(
            f"column {column.sql()[:80]!r} is in none of the query's tables. {did_you_mean(column.name, names)}"
        )
