"""Whether a query gives the same rows as the gold query on the same database (Spider's execution accuracy).

Rows are compared as test-suite evaluation does (Zhong, Yu and Klein, 2020): as multisets, or in order when the gold query's result is
ordered, and up to a permutation of the columns, since a question seldom says which column comes first. Numbers are equal within a
relative tolerance, whether they come as whole numbers or not.

Generated SQL runs read-only: the file is opened so, one SELECT is all that may come, and SQLite itself refuses everything but reading
tables and calling functions. A time limit and a row limit end what runs away.
"""

from __future__ import annotations

import math
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import DataError
from luthier.scorers._score import Answer, Score, Target
from luthier.strategies._judge_reply import without_thoughts

Row = tuple[Any, ...]

_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_START = re.compile(r"\b(?:SELECT|WITH)\b", re.IGNORECASE)
_ORDERED = re.compile(r"\border\s+by\b(?!.*\))", re.IGNORECASE | re.DOTALL)
_PLAIN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|[^;'"`]+?(?=[;'"`\n]|\Z)|[\n'"`]""")
_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_FORBIDDEN_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"})
_LONGEST_VALUE = 16 << 20
_STEPS = 1000
_MOST_PERMUTATIONS = 5000


class Config(EntryConfig):
    """The example's ``target`` is the gold query, and its ``meta.database`` the path of the SQLite file.

    ``timeout_s`` and ``max_rows`` bound each query. ``tolerance`` is relative, for numbers. ``column_order``: columns must come in the
    gold query's order. ``row_order``: auto compares in order when the gold query ends in ORDER BY. ``prefix`` is put before an
    answer that goes on from it (a prompt that ends in ``SELECT``).
    """

    timeout_s: float = Field(default=10.0, gt=0)
    max_rows: int = Field(default=50_000, ge=1)
    tolerance: float = Field(default=1e-6, ge=0)
    column_order: bool = False
    row_order: bool | None = Field(default=None, description="null: in order when the gold query ends in ORDER BY")
    prefix: str = ""


class QueryError(Exception):
    """Why a query gave no rows to compare."""


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the rows are the same, else 0.0; the detail holds the query that was read from the answer, and the reason.

    Raises DataError, which names the example, when its database or its gold query cannot be used.
    """
    path = _database(target)
    try:
        gold = run_query(path, target.text, config)
    except QueryError as error:
        raise DataError(
            f"example {_name(target)}: the gold query fails on {path.name}: {error}: {target.text}"
        ) from error
    sql = extract_sql(config.prefix + answer.text)
    detail: dict[str, Any] = {"sql": sql, "gold_rows": len(gold)}
    if not sql:
        return Score(0.0, detail | {"reason": "the answer holds no SELECT"})
    try:
        rows = run_query(path, sql, config)
    except QueryError as error:
        return Score(0.0, detail | {"reason": str(error)})
    ordered = is_ordered(target.text) if config.row_order is None else config.row_order
    reason = difference(gold, rows, ordered=ordered, column_order=config.column_order, tolerance=config.tolerance)
    return Score(0.0, detail | {"rows": len(rows), "reason": reason}) if reason else Score(1.0, detail)


# ---- running


def run_query(path: Path, sql: str, config: Config) -> list[Row]:
    """The rows of one SELECT. Raises QueryError with the reason: not a SELECT, SQLite's own message, too slow, too many rows."""
    _check_select(sql)
    deadline = time.monotonic() + config.timeout_s
    try:
        with closing(_connect(path)) as connection:
            connection.set_authorizer(_authorize)
            connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            rows: list[Row] = connection.execute(sql).fetchmany(config.max_rows + 1)
    except (sqlite3.Error, sqlite3.Warning, OverflowError, MemoryError, ValueError) as error:
        if time.monotonic() > deadline:
            raise QueryError(f"it ran for more than {config.timeout_s:g} s") from error
        raise QueryError(str(error) or type(error).__name__) from error
    if len(rows) > config.max_rows:
        raise QueryError(f"it gives more than {config.max_rows} rows (max_rows)")
    return rows


def _connect(path: Path) -> sqlite3.Connection:
    last: sqlite3.Error | None = None
    for mode in (
        "mode=ro",
        "mode=ro&immutable=1",
    ):  # a file in WAL mode that lies in a read-only folder opens as immutable only
        connection = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, isolation_level=None)
        try:
            connection.execute("PRAGMA query_only = ON")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            connection.close()
            last = error
            continue
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        return connection
    raise last or sqlite3.OperationalError("cannot be opened")


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    named = action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS
    return sqlite3.SQLITE_OK if action in _ALLOWED and not named else sqlite3.SQLITE_DENY


def _check_select(sql: str) -> None:
    """Raise QueryError for more than one statement, or one that is no query. What only SQLite understands is left to SQLite."""
    statements = _parsed(sql)
    if statements is None:
        return
    from sqlglot import exp

    if len(statements) != 1:
        raise QueryError(f"one statement is allowed; got {len(statements)}")
    if not isinstance(statements[0], exp.Query):
        raise QueryError(f"only SELECT is allowed; got {statements[0].key.upper()}")


def _parsed(sql: str) -> list[Any] | None:
    """The statements, or None where sqlglot cannot read them."""
    import sqlglot
    from sqlglot.errors import SqlglotError

    try:
        return [statement for statement in sqlglot.parse(sql, read="sqlite") if statement is not None]
    except (SqlglotError, RecursionError):
        return None


def is_ordered(sql: str) -> bool:
    """Whether the query's own result is ordered; an ORDER BY inside a subquery does not count."""
    statements = _parsed(sql)
    if not statements:
        return bool(_ORDERED.search(sql))
    return statements[0].args.get("order") is not None


def _database(target: Target) -> Path:
    given = target.meta.get("database")
    if not given:
        raise DataError(f"example {_name(target)}: meta.database is needed: the path of its SQLite file")
    path = Path(str(given))
    if not path.is_file():
        raise DataError(f"example {_name(target)}: meta.database: no such file: {path}")
    return path


def _name(target: Target) -> str:
    return repr(str(target.meta.get("id") or " ".join(target.input.split())[:80]))


# ---- reading


def extract_sql(text: str) -> str:
    """The query in a reply: of the first Markdown block that holds one, else from the first SELECT or WITH on that can be read.

    Without a block it ends at a semicolon or an empty line. Empty when there is none.
    """
    text = without_thoughts(text)
    for _, block in _FENCE.findall(text):
        if _START.search(block):
            return str(block).strip().rstrip(";").strip()
    candidates = [_until_end(text[found.start() :]) for found in _START.finditer(text)][:20]
    readable = (sql for sql in candidates if _is_query(sql))
    return next(readable, candidates[0] if candidates else "")


def _is_query(sql: str) -> bool:
    from sqlglot import exp

    statements = _parsed(sql)
    return bool(statements) and len(statements or ()) == 1 and isinstance((statements or [None])[0], exp.Query)


def _until_end(text: str) -> str:
    """``text`` up to a semicolon or an empty line outside quotes."""
    out = ""
    for piece in _PLAIN.finditer(text):
        if piece.start() != len(out) or (piece[0] == "\n" and re.match(r"[ \t]*\n", text[piece.end() :])):
            break
        out += piece[0]
    return out.strip()


# ---- comparing


def difference(gold: Sequence[Row], rows: Sequence[Row], *, ordered: bool, column_order: bool, tolerance: float) -> str:
    """Why two results differ, empty when they are the same."""
    if len(gold) != len(rows):
        return f"{len(rows)} rows instead of {len(gold)}"
    if not gold:
        return ""
    width = len(gold[0])
    if len(rows[0]) != width:
        return f"{len(rows[0])} columns instead of {width}"
    same = _same_ordered if ordered else _same_multiset
    straight = tuple(range(width))
    if same(gold, rows, tolerance):
        return ""
    if column_order:
        return "other values" + (", or another order" if ordered else "")
    for order in _permutations(gold, rows, tolerance):
        if order != straight and same(gold, [tuple(row[i] for i in order) for row in rows], tolerance):
            return ""
    if ordered and difference(gold, rows, ordered=False, column_order=False, tolerance=tolerance) == "":
        return "the same rows in another order"
    return "other values"


def _permutations(gold: Sequence[Row], rows: Sequence[Row], tolerance: float) -> Iterator[tuple[int, ...]]:
    """Orders of the columns in which each has the values of its gold column, at most 5,000 of them."""
    width = len(gold[0])
    left = [[(row[i],) for row in gold] for i in range(width)]
    right = [[(row[i],) for row in rows] for i in range(width)]
    fits = [[j for j in range(width) if _same_multiset(left[i], right[j], tolerance)] for i in range(width)]
    tried = 0
    stack: list[tuple[int, ...]] = [()]
    while stack and tried < _MOST_PERMUTATIONS:
        chosen = stack.pop()
        if len(chosen) == width:
            tried += 1
            yield chosen
            continue
        stack += [(*chosen, j) for j in reversed(fits[len(chosen)]) if j not in chosen]


def _same_ordered(gold: Sequence[Row], rows: Sequence[Row], tolerance: float) -> bool:
    return all(
        _close(a, b, tolerance)
        for left, right in zip(gold, rows, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def _same_multiset(gold: Sequence[Row], rows: Sequence[Row], tolerance: float) -> bool:
    """Equal as multisets: exactly, or pair by pair within the tolerance once sorted."""
    if Counter(gold) == Counter(rows):
        return True
    if tolerance == 0 or not any(isinstance(value, float) for row in (*gold, *rows) for value in row):
        return False
    return _same_ordered(sorted(gold, key=_sort_key), sorted(rows, key=_sort_key), tolerance)


def _close(left: Any, right: Any, tolerance: float) -> bool:
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return left == right or math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance * 1e-3)
    return type(left) is type(right) and left == right


def _sort_key(row: Row) -> list[tuple[int, Any]]:
    """Texts before numbers, so that numbers that differ by rounding do not decide the order of the rest."""
    kinds = {str: 0, bytes: 1, int: 2, float: 2}
    keyed = [(kinds.get(type(value), 3), value if value is not None else 0) for value in row]
    return [key for key in keyed if key[0] != 2] + [key for key in keyed if key[0] == 2]
