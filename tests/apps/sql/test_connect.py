from __future__ import annotations

import datetime
import decimal
import sqlite3
import time
from pathlib import Path

import pytest
from tests.apps.sql.conftest import digest

from luthier.apps.sql.connect import Database, Limits, QueryError, connect, read_target
from luthier.core.errors import InputError


def test_schema_has_columns_keys_and_samples(shop: Database) -> None:
    orders = shop.schema().table("ORDERS")
    assert orders is not None
    assert [column.name for column in orders.columns] == ["id", "customer_id", "total", "day"]
    assert orders.columns[0].primary and not orders.columns[1].primary
    (key,) = orders.keys
    assert (key.columns, key.to_table, key.to_columns) == (("customer_id",), "customers", ("id",))
    chinese = shop.schema().table("订单")
    assert chinese is not None and chinese.columns[1].samples == ("'北京'", "'上海'")


def test_rows_cells_and_bytes_are_cut(shop: Database) -> None:
    whole = shop.run("SELECT id FROM orders ORDER BY id", Limits(rows=5000))
    assert len(whole.rows) == 2000 and not whole.cut
    few = shop.run("SELECT id FROM orders ORDER BY id", Limits(rows=2000))
    assert len(few.rows) == 2000 and not few.cut
    cut = shop.run("SELECT id FROM orders ORDER BY id", Limits(rows=7))
    assert cut.rows == tuple((n,) for n in range(1, 8)) and cut.cut
    bytes_ = shop.run("SELECT day, day, day FROM orders", Limits(rows=5000, result_bytes=2000))
    assert 1 <= len(bytes_.rows) < 40 and bytes_.cut
    long = shop.run("SELECT replace('aaaaaaaaaaaaaaaaaaaa', 'a', 'bbbbbbbbbb')", Limits(cell_characters=20)).rows[0][0]
    assert long == "b" * 19 + "…"


def test_values_come_through(shops: dict[str, Path]) -> None:
    with connect(shops["duckdb"]) as database:
        (row,) = database.run(
            "SELECT NULL, TRUE, 7, 2.5::DOUBLE, 1.10::DECIMAL(9, 2), DATE '2026-02-03', TIMESTAMP '2026-02-03 04:05:06', '\\xAA'::BLOB, [1, 2], "
            "'nan'::DOUBLE, 170141183460469231731687303715884105727::HUGEINT, TIME '01:02:03', '\u0000汉字\U0001f600'"
        ).rows
    assert row[:7] == (
        None, True, 7, 2.5, decimal.Decimal("1.10"), datetime.date(2026, 2, 3), datetime.datetime(2026, 2, 3, 4, 5, 6),
    )  # fmt: skip
    assert row[7:9] == ("0xaa", "[1, 2]") and row[9] != row[9]
    assert row[10:] == (2**127 - 1, datetime.time(1, 2, 3), "\u0000汉字\U0001f600")


def test_text_that_is_not_unicode(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "odd.db")
    connection.execute("CREATE TABLE t (a TEXT, b BLOB)")
    connection.execute("INSERT INTO t VALUES (CAST(x'ff41' AS TEXT), x'00ff')")
    connection.commit()
    connection.close()
    with connect(tmp_path / "odd.db") as database:
        assert database.run("SELECT a, b FROM t").rows == (("\ufffdA", "0x00ff"),)


def test_private_columns_are_not_sampled(shops: dict[str, Path]) -> None:
    with connect(shops["sqlite"], private=["email", "orders.*"]) as database:
        shown = database.schema().render()
        assert "ada@example.org" not in shown and "2026-01-01" not in shown and "'Ada'" in shown
        assert "email" in shown  # the column can still be asked for
        assert database.run("SELECT email FROM customers WHERE id = 1").rows == (("ada@example.org",),)
    with connect(shops["sqlite"], samples=0) as database:
        assert "for example" not in database.schema().render()


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text("item,price\npen,2\n", encoding="utf-8")
    with connect(path) as database:
        assert database.run("SELECT sum(price) FROM prices").rows == ((2,),)
        path.write_text("item,price,shop\npen,2,x\ncup,5,y\n", encoding="utf-8")
        table = database.schema().table("prices")
        assert table is not None and [column.name for column in table.columns] == ["item", "price", "shop"]
        assert database.run("SELECT sum(price) FROM prices").rows == ((7,),)


def test_a_writer_goes_on_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "live.sqlite"
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE t (a INT)")
    writer.commit()
    with connect(path) as database:
        for count in (1, 2, 3):
            writer.execute("INSERT INTO t VALUES (1)")
            writer.commit()
            assert database.run("SELECT count(*) FROM t").rows == ((count,),)
    writer.close()


def test_opening_and_asking_change_no_byte(shops: dict[str, Path]) -> None:
    for path in shops.values():
        before, modified, beside = digest(path), path.stat().st_mtime_ns, sorted(path.parent.iterdir())
        with connect(path) as database:
            database.run("SELECT * FROM orders ORDER BY total")
        assert (digest(path), path.stat().st_mtime_ns, sorted(path.parent.iterdir())) == (before, modified, beside)


def test_a_question_costs_milliseconds(shop: Database) -> None:
    shop.run("SELECT 1")
    times = []
    for _ in range(20):
        start = time.perf_counter()
        shop.run("SELECT count(*) FROM customers")
        times.append(time.perf_counter() - start)
    assert sorted(times)[0] < 0.1  # a process of its own for each would take several times as long


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "must not be empty"),
        ("{tmp}/missing.db", "no such database"),
        ("sqlite:///{tmp}/missing.db", "no such database"),
        ("oracle://x/y", "got 'oracle'"),
        ("{tmp}/text.txt", "neither a SQLite nor a DuckDB"),
        ("{tmp}/empty", "must hold 1 to 200 files"),
        ("{tmp}/a.csv,{tmp}/text.txt", "is not one of"),
        ("{tmp}/bad.sqlite", "cannot be read as a SQLite database"),
        ("{tmp}/bad.duckdb", "cannot be read"),
    ],
)
def test_what_is_no_database(url: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello", encoding="utf-8")
    (tmp_path / "a.csv").write_text("a\n1\n", encoding="utf-8")
    (tmp_path / "bad.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    (tmp_path / "bad.duckdb").write_bytes(b"\0" * 8 + b"DUCK" + b"\xff" * 5000)
    with pytest.raises(InputError) as error:
        connect(url.format(tmp=tmp_path))
    assert said in error.value.message


def test_urls(tmp_path: Path) -> None:
    path = tmp_path / "a b.db"
    sqlite3.connect(path).execute("CREATE TABLE t (a)").connection.close()
    for url in (f"sqlite:///{path}", f"sqlite:///{str(path).replace(' ', '%20')}", str(path)):
        assert read_target(url).paths == (str(path),)
    assert read_target("postgresql+psycopg://u:p@h/d").dialect == "postgres"
    assert read_target("mariadb://u:p@h/d").dialect == "mysql"


@pytest.mark.parametrize(
    "limits",
    [{"timeout_s": 0}, {"timeout_s": -1}, {"rows": 0}, {"memory_mb": 1}, {"cell_characters": 0}, {"result_bytes": 0}],
)
def test_bad_limits(limits: dict[str, int]) -> None:
    (name,) = limits
    with pytest.raises(InputError, match=name):
        Limits(**limits)


def test_errors_are_the_databases_own(shop: Database) -> None:
    with pytest.raises(QueryError, match="nosuch"):
        shop.run("SELECT nosuch FROM orders")
