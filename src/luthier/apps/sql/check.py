"""Generated SQL is run only when it is one query that reads: parsed, its parts checked against a list of what is allowed.

This is the first of three guards: the connection itself cannot write (``apps.sql.connect``), and time, rows and memory are bounded.
"""

from __future__ import annotations

import logging
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from luthier.apps.sql.schema import Schema
from luthier.core.errors import InputError, did_you_mean

MOST_CHARACTERS = 20_000

_FORBIDDEN = tuple(
    found
    for name in (
        "Insert", "Update", "Delete", "Merge", "Create", "Drop", "Alter", "TruncateTable", "Command", "Pragma", "Attach", "Detach",
        "Copy", "Set", "SetItem", "Use", "Transaction", "Commit", "Rollback", "Into", "Lock", "Kill", "LoadData", "Describe", "Show",
        "Analyze", "Cache", "Uncache", "Refresh", "Export", "Install", "Grant", "Revoke", "Comment", "Execute", "Declare", "Parameter",
        "SessionParameter", "Placeholder", "ReadCSV", "ReadParquet", "Directory", "Put", "Get",
    )
    if (found := getattr(exp, name, None)) is not None
)  # fmt: skip
"""Parts that write, change the session, or read what is not a table."""

_FUNCTIONS = frozenset(
    [
        "abs",
        "acos",
        "asin",
        "atan",
        "atan2",
        "avg",
        "ceil",
        "ceiling",
        "char",
        "char_length",
        "character_length",
        "chr",
        "coalesce",
        "concat",
        "concat_ws",
        "cos",
        "cot",
        "count",
        "cume_dist",
        "current_date",
        "current_time",
        "current_timestamp",
        "date",
        "date_add",
        "date_diff",
        "date_format",
        "date_part",
        "date_sub",
        "date_trunc",
        "datediff",
        "datetime",
        "day",
        "dayname",
        "dayofmonth",
        "dayofweek",
        "dayofyear",
        "degrees",
        "dense_rank",
        "exp",
        "extract",
        "first_value",
        "floor",
        "format",
        "format_date",
        "greatest",
        "group_concat",
        "hex",
        "hour",
        "if",
        "ifnull",
        "iif",
        "initcap",
        "instr",
        "isnull",
        "julianday",
        "lag",
        "last_day",
        "last_value",
        "lead",
        "least",
        "left",
        "length",
        "ln",
        "local_time",
        "locate",
        "log",
        "log10",
        "log2",
        "lower",
        "lpad",
        "ltrim",
        "make_date",
        "max",
        "median",
        "microsecond",
        "mid",
        "min",
        "minute",
        "mod",
        "mode",
        "month",
        "monthname",
        "now",
        "nth_value",
        "ntile",
        "nullif",
        "nvl",
        "octet_length",
        "percent_rank",
        "percentile_cont",
        "percentile_disc",
        "pi",
        "position",
        "pow",
        "power",
        "printf",
        "quantile",
        "quarter",
        "radians",
        "random",
        "rank",
        "regexp_like",
        "regexp_matches",
        "regexp_replace",
        "repeat",
        "replace",
        "reverse",
        "right",
        "round",
        "row_number",
        "rpad",
        "rtrim",
        "second",
        "sign",
        "sin",
        "split_part",
        "sqrt",
        "stddev",
        "stddev_pop",
        "stddev_samp",
        "str_to_date",
        "strftime",
        "string_agg",
        "strlen",
        "strpos",
        "strptime",
        "substr",
        "substring",
        "sum",
        "tan",
        "time",
        "timediff",
        "timestamp",
        "timestampdiff",
        "to_char",
        "to_date",
        "to_number",
        "to_timestamp",
        "total",
        "translate",
        "trim",
        "trunc",
        "truncate",
        "typeof",
        "ucase",
        "unicode",
        "unixepoch",
        "upper",
        "var_pop",
        "var_samp",
        "variance",
        "week",
        "weekday",
        "weekofyear",
        "year",
        "yearweek",
        "corr",
        "covar_pop",
        "covar_samp",
        "bit_length",
        "approx_count_distinct",
        "any_value",
        "arg_max",
        "arg_min",
        "list_aggregate",
        "string_split",
        "array_agg",
        "bool_and",
        "bool_or",
        "every",
        "age",
    ]
)
"""Functions that sqlglot does not know by a class of their own and that only compute."""

_TYPED_REFUSED = frozenset(
    [
        "ReadCSV",
        "ReadParquet",
        "JSONTable",
        "XMLTable",
        "CurrentUser",
        "CurrentDatabase",
        "CurrentSchema",
        "SessionUser",
        "CurrentRole",
        "LoadFile",
    ]
)


def check(sql: str, dialect: str, schema: Schema) -> str:
    """The one query in ``sql``, as it will be run. Raises InputError that says what is not allowed in it.

    ``dialect`` is sqlite, duckdb, postgres or mysql. Tables must be the schema's, or named in the query itself.
    """
    if len(sql) > MOST_CHARACTERS:
        raise InputError(f"the query has {len(sql):,} characters; at most {MOST_CHARACTERS:,} are run")
    if "\0" in sql:
        raise InputError("the query holds a NUL character")
    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    try:
        statements = [each for each in sqlglot.parse(sql, read=dialect) if each is not None]
    except (SqlglotError, RecursionError) as error:
        raise InputError(
            f"the query cannot be parsed: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    if len(statements) != 1:
        raise InputError(f"exactly one query is run; got {len(statements)} statements")
    query = statements[0]
    if not isinstance(query, exp.Select | exp.SetOperation):
        raise InputError(f"only SELECT is run; got {type(query).__name__.upper()}")
    _check_parts(query)
    _check_tables(query, schema)
    return query.sql(dialect=dialect, comments=False)


def _check_parts(query: Any) -> None:
    for node in query.walk():
        if isinstance(node, _FORBIDDEN):
            raise InputError(f"{type(node).__name__.upper()} is not allowed in a query that only reads")
        if isinstance(node, exp.Anonymous):
            name = str(node.this).lower()
            if name not in _FUNCTIONS:
                raise InputError(f"the function {name} is not on the list of those that are run")
        elif isinstance(node, exp.Func) and type(node).__name__ in _TYPED_REFUSED:
            raise InputError(f"the function {node.sql_name().lower()} is not on the list of those that are run")
        elif isinstance(node, exp.Dot) and isinstance(node.expression, exp.Func):
            raise InputError(f"functions of other schemas are not run; got {node.sql()[:60]}")


def _check_tables(query: Any, schema: Schema) -> None:
    """Each name that is read from is a table of the schema or one that the query itself makes."""
    made = {cte.alias.lower() for cte in query.find_all(exp.CTE)}
    for table in query.find_all(exp.Table):
        if not isinstance(table.this, exp.Identifier):
            if isinstance(table.this, exp.Func):
                raise InputError(f"tables are read by name; got the function {table.this.sql()[:60]}")
            raise InputError(f"tables are read by name; got {table.sql()[:60]}")
        name = table.name
        if table.catalog or (table.db and table.db.lower() not in ("main", "public")):
            raise InputError(f"tables of other databases are not read; got {table.sql()[:60]}")
        if name.lower() not in made and schema.table(name) is None:
            names = [each.name for each in schema.tables]
            raise InputError(f"table {name!r} is not in this database. {did_you_mean(name, names)}")
