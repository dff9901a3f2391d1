from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import DataError
from luthier.scorers._score import Answer, Score, Target
from luthier.scorers.sql_execution import Config, difference, extract_sql, is_ordered, score

GOLD = "SELECT name, age FROM singer"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "songs.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE singer (id INTEGER, name TEXT, age INTEGER, worth REAL)")
        rows = [(1, "Ada", 30, 0.1), (2, "Bo", 40, 0.2), (3, "Cy", 30, 0.3), (4, "Ann; Lee", None, None)]
        connection.executemany("INSERT INTO singer VALUES (?, ?, ?, ?)", rows)
        connection.execute("INSERT INTO singer VALUES (5, CAST(x'4aff' AS TEXT), 1, 1.0)")
    return path


def asked(database: Path, answer: str, gold: str = GOLD, **options: Any) -> Score:
    target = Target(gold, meta={"database": str(database), "id": "row-7"})
    return score(Answer(answer), target, Config(**options))


@pytest.mark.parametrize(
    ("answer", "gold", "value"),
    [
        (GOLD, GOLD, 1.0),
        ("SELECT age, name FROM singer", GOLD, 1.0),  # a question does not say which column comes first
        ("SELECT s.name, s.age FROM singer AS s ORDER BY s.age", GOLD, 1.0),
        ("SELECT name, age FROM singer WHERE age > 30", GOLD, 0.0),
        ("SELECT name, id FROM singer", GOLD, 0.0),
        ("SELECT name FROM singer", GOLD, 0.0),
        ("SELECT DISTINCT age FROM singer", "SELECT age FROM singer", 0.0),  # multisets
        ("SELECT name FROM singer ORDER BY name DESC", "SELECT name FROM singer ORDER BY name", 0.0),
        ("SELECT name FROM singer ORDER BY name ASC", "SELECT name FROM singer ORDER BY name", 1.0),
        ("SELECT sum(worth) FROM singer", "SELECT 0.1 + 0.2 + 0.3 + 1", 1.0),
        ("SELECT 3", "SELECT 3.0", 1.0),
        ("SELECT '3'", "SELECT 3", 0.0),
        ("SELECT name FROM singer WHERE name = 'nobody'", "SELECT id FROM singer WHERE id > 99", 1.0),  # both empty
        (
            "WITH old AS (SELECT * FROM singer WHERE age > 30) SELECT name FROM old",
            "SELECT name FROM singer WHERE age > 30",
            1.0,
        ),
        ("SELECT age FROM singer UNION SELECT 30", "SELECT DISTINCT age FROM singer", 1.0),
        ("SELECT nmae FROM singer", GOLD, 0.0),
        ("I do not know.", GOLD, 0.0),
        ("", GOLD, 0.0),
    ],
)
def test_rows_decide(database: Path, answer: str, gold: str, value: float) -> None:
    got = asked(database, answer, gold)
    assert got.value == value, got
    assert bool(got.detail.get("reason")) == (value == 0.0)


def test_options(database: Path) -> None:
    assert asked(database, "SELECT age, name FROM singer", column_order=True).value == 0.0
    by_name = "SELECT name FROM singer ORDER BY name"
    assert asked(database, f"{by_name} DESC", by_name, row_order=False).value == 1.0
    assert (
        asked(database, "SELECT name FROM singer ORDER BY name DESC", "SELECT name FROM singer", row_order=True).value
        == 0.0
    )
    assert asked(database, " name, age FROM singer", prefix="SELECT").value == 1.0
    assert asked(database, "SELECT 1.001", "SELECT 1.0", tolerance=0.01).value == 1.0
    assert asked(database, "SELECT 1.001", "SELECT 1.0").value == 0.0


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("DELETE FROM singer", "no SELECT"),
        ("SELECT 1; DROP TABLE singer", "rows"),  # what comes after the semicolon is never run
        ("WITH x AS (SELECT 1) DELETE FROM singer", "only SELECT"),
        ("SELECT load_extension('evil')", "not authorized"),
        ("SELECT * FROM pragma_table_info('singer')", "not authorized"),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n", "more than 0.2 s"),
        (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000) SELECT i FROM n",
            "more than 1000 rows",
        ),
        ("SELECT length(zeroblob(1000000000))", "too big"),
        ("SELECT " + "(" * 5000 + "1" + ")" * 5000, ""),
        ("SELECT '\ud800'", ""),
        ("SELECT 1\0", ""),
    ],
)
def test_what_is_no_harmless_select_is_refused_and_scores_zero(database: Path, sql: str, said: str) -> None:
    before = database.read_bytes()
    got = asked(database, sql, timeout_s=0.2, max_rows=1000)
    assert got.value == 0.0
    assert said in str(got.detail["reason"])
    assert database.read_bytes() == before


def test_two_statements_in_a_block_are_refused(database: Path) -> None:
    assert "one statement" in str(asked(database, "```sql\nSELECT 1; SELECT 2\n```").detail["reason"])


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ("SELECT a FROM t", "SELECT a FROM t"),
        ("SELECT a FROM t; SELECT b", "SELECT a FROM t"),
        ("SELECT a\nFROM t\n\nThis query...", "SELECT a\nFROM t"),
        ("SELECT a FROM t WHERE b = 'x; y\n\nz' AND c", "SELECT a FROM t WHERE b = 'x; y\n\nz' AND c"),
        ("Here:\n```sql\nSELECT a FROM t;\n```\nor\n```sql\nSELECT b\n```", "SELECT a FROM t"),
        ("Run\n```\npip install x\n```\nthen\n```sqlite\nselect 1\n```", "select 1"),
        ("```sql\nSELECT a FROM t", "SELECT a FROM t"),
        ("With this you select it: SELECT a FROM t;", "SELECT a FROM t"),
        ("SQL: with x as (select 1) select * from x", "with x as (select 1) select * from x"),
        ("<think>SELECT b FROM u?</think>SELECT a FROM t", "SELECT a FROM t"),
        ("selected nothing", ""),
        ("", ""),
    ],
)
def test_the_query_is_found_in_a_reply(text: str, sql: str) -> None:
    assert extract_sql(text) == sql


def test_only_the_outermost_order_counts() -> None:
    assert is_ordered("SELECT a FROM t ORDER BY a")
    assert is_ordered("SELECT a FROM t UNION SELECT b FROM u ORDER BY 1 LIMIT 3")
    assert not is_ordered("SELECT a FROM t WHERE b IN (SELECT b FROM t ORDER BY c LIMIT 1)")


def test_broken_gold_and_missing_databases_are_errors_that_name_the_row(database: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row-7.*gold query fails on songs\.sqlite: no such column: nmae"):
        asked(database, GOLD, "SELECT nmae FROM singer")
    with pytest.raises(DataError, match=r"row-7.*no such file"):
        asked(tmp_path / "none.sqlite", GOLD)
    with pytest.raises(DataError, match=r"How many.*meta\.database"):
        score(Answer(GOLD), Target(GOLD, input="How many?"), Config())
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match="not a database"):
        asked(damaged, GOLD)


VALUES = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([0.5, 0.1 + 0.2, 0.3]), st.sampled_from(["a", "b"]))
TABLES = st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[VALUES] * width), min_size=1, max_size=6))


@given(TABLES, st.randoms(use_true_random=False))
def test_shuffled_rows_and_columns_are_the_same_result(rows: list[tuple[Any, ...]], draw: Any) -> None:
    order = list(range(len(rows[0])))
    draw.shuffle(order)
    other = [tuple(row[i] for i in order) for row in rows]
    options: dict[str, Any] = {"column_order": False, "tolerance": 1e-6}
    assert difference(rows, other, ordered=True, **options) == ""
    draw.shuffle(other)
    assert difference(rows, other, ordered=False, **options) == ""
    changed = [*other[:-1], tuple("other" for _ in order)]
    assert difference(rows, changed, ordered=False, **options) != ""


def test_many_equal_columns_are_compared_in_good_time() -> None:
    rows = [(1,) * 12, (2,) * 12]
    wrong = [(1,) * 11 + (2,), (2,) * 11 + (1,)]
    options: dict[str, Any] = {"ordered": False, "column_order": False, "tolerance": 1e-6}
    assert difference(rows, rows, **options) == ""
    assert difference(rows, wrong, **options) == "other values"
