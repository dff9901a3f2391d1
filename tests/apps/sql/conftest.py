"""A shop in each kind of database."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.apps.sql.connect import Database, Limits, connect

TABLES = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT, email TEXT);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers (id), total REAL, day TEXT);
CREATE TABLE "订单" ("编号" INTEGER PRIMARY KEY, "城市" TEXT, "金额" REAL);
"""
ROWS = {
    "customers": [
        (1, "Ada", "Oslo", "ada@example.org"),
        (2, "Bo", "Bergen", "bo@example.org"),
        (3, "Cy", "Oslo", None),
    ],
    "orders": [(n, 1 + n % 3, 10.0 * n, f"2026-{1 + n % 12:02d}-01") for n in range(1, 2001)],
    "订单": [(1, "北京", 100.0), (2, "上海", 250.5), (3, "北京", 60.0)],
}
QUICK = Limits(timeout_s=0.5, rows=50, memory_mb=256)


def fill(execute_many: object, mark: str = "?", quote: str = '"') -> None:
    """Insert the shop's rows through a driver's ``executemany``."""
    for table, rows in ROWS.items():
        marks = ", ".join([mark] * len(rows[0]))
        execute_many(f"INSERT INTO {quote}{table}{quote} VALUES ({marks})", rows)  # type: ignore[operator]


def digest(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def shops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shop as a SQLite and as a DuckDB file."""
    import duckdb
    import pyarrow as pa

    folder = tmp_path_factory.mktemp("shops")
    light = sqlite3.connect(folder / "shop.sqlite")
    light.executescript(TABLES)
    fill(light.executemany)
    light.commit()
    light.close()
    duck = duckdb.connect(str(folder / "shop.duckdb"))
    duck.execute(TABLES.replace(" REAL", " DOUBLE"))
    for table, rows in ROWS.items():  # DuckDB takes columns at once, and rows one by one slowly
        names = [row[0] for row in duck.execute(f"SELECT name FROM pragma_table_info('{table}')").fetchall()]
        duck.register("shown", pa.table({name: [row[at] for row in rows] for at, name in enumerate(names)}))
        duck.execute(f'INSERT INTO "{table}" SELECT * FROM shown')
        duck.unregister("shown")
    duck.close()
    return {"sqlite": folder / "shop.sqlite", "duckdb": folder / "shop.duckdb"}


@pytest.fixture(scope="session", params=["sqlite", "duckdb"])
def shop(request: pytest.FixtureRequest, shops: dict[str, Path]) -> Iterator[Database]:
    """The shop, open; once in SQLite and once in DuckDB."""
    with connect(shops[request.param], QUICK) as database:
        yield database


def server_url(kind: str) -> str:
    """The URL of a server that tests may write to; skips without one."""
    name = {"postgres": "LUTHIER_TEST_POSTGRES", "mysql": "LUTHIER_TEST_MYSQL"}[kind]
    url = os.environ.get(name, "")
    if not url:
        pytest.skip(f"needs a {kind} server that tests may write to: set {name} to its URL")
    return url
