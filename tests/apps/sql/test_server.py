"""PostgreSQL and MySQL, where there is a server that tests may write to (``LUTHIER_TEST_POSTGRES``, ``LUTHIER_TEST_MYSQL``: URLs)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from tests.apps.sql.conftest import ROWS, TABLES, fill, server_url

from luthier.apps.sql.check import check
from luthier.apps.sql.connect import Database, Limits, QueryError, connect
from luthier.core.errors import EngineError, InputError, LuthierError

QUICK = Limits(timeout_s=1.0, rows=50, memory_mb=256)
NAMES = ("orders", "customers", "订单")
RAW = {
    "postgres": [
        "DELETE FROM customers", "WITH x AS (DELETE FROM customers RETURNING *) SELECT * FROM x", "SELECT 1; DROP TABLE orders",
        "SELECT 1; COMMIT; DROP TABLE orders", "SELECT * INTO copied FROM customers", "SELECT set_config('transaction_read_only', 'off', false)",
        "SELECT * FROM customers FOR UPDATE", "COPY customers TO '/tmp/luthier-evil'", "COPY customers TO PROGRAM 'touch /tmp/luthier-evil'",
        "EXPLAIN ANALYZE DELETE FROM customers", "SELECT query_to_xml('DROP TABLE orders', true, true, '')", "SELECT pg_terminate_backend(pg_backend_pid())",
    ],
    "mysql": [
        "DELETE FROM customers", "INSERT INTO customers (id) VALUES (9)", "SELECT 1; DROP TABLE orders", "DROP TABLE nosuch_table",
        "SELECT * FROM customers FOR UPDATE", "KILL CONNECTION_ID()", "REPLACE INTO customers (id) VALUES (1)",
    ],
}  # fmt: skip
LONG = {
    "postgres": [
        "SELECT pg_sleep(60)", "SELECT count(*) FROM orders a, orders b, orders c, orders d", "SELECT repeat('x', 1000000000)",
        "WITH RECURSIVE c AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c", "SELECT * FROM generate_series(1, 10000000000)",
    ],
    "mysql": ["SELECT SLEEP(60)", "SELECT count(*) FROM orders a, orders b, orders c, orders d", "SELECT BENCHMARK(10000000000, MD5('x'))"],
}  # fmt: skip


def _write(kind: str, url: str) -> None:
    import sqlalchemy as sa

    driver = {"postgres": "postgresql+psycopg", "mysql": "mysql+pymysql"}[kind]
    engine = sa.create_engine(sa.make_url(url).set(drivername=driver))
    quote = '"' if kind == "postgres" else "`"
    with engine.begin() as connection:
        for name in NAMES:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {quote}{name}{quote}")
        if kind == "mysql":
            connection.exec_driver_sql("ALTER DATABASE CHARACTER SET utf8mb4")
        for statement in filter(None, map(str.strip, TABLES.replace('"', quote).split(";"))):
            connection.exec_driver_sql(statement.replace("REFERENCES customers (id)", ""))
        connection.exec_driver_sql("ALTER TABLE orders ADD FOREIGN KEY (customer_id) REFERENCES customers (id)")
        cursor = connection.connection.driver_connection.cursor()  # type: ignore[union-attr]
        fill(cursor.executemany, "%s", quote)
    engine.dispose()


@pytest.fixture(scope="module", params=["postgres", "mysql"])
def server(request: pytest.FixtureRequest) -> Iterator[Database]:
    """The shop on a server."""
    url = server_url(request.param)
    _write(request.param, url)
    with connect(url, QUICK) as database:
        yield database


def test_schema(server: Database) -> None:
    orders, chinese = server.schema().table("orders"), server.schema().table("订单")
    assert orders is not None and chinese is not None
    assert [column.name for column in orders.columns] == ["id", "customer_id", "total", "day"]
    assert orders.columns[0].primary and orders.keys[0].to_table == "customers"
    assert chinese.columns[1].samples == ("'北京'", "'上海'")


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT name FROM customers WHERE name LIKE 'A%' ORDER BY name", (("Ada",),)),
        ("SELECT city, count(*) AS n FROM customers GROUP BY city ORDER BY n DESC", (("Oslo", 2), ("Bergen", 1))),
        ("SELECT c.name FROM customers c JOIN orders o ON o.customer_id = c.id GROUP BY c.name ORDER BY c.name LIMIT 1", (("Ada",),)),
        ("SELECT 订单.城市 FROM 订单 WHERE 金额 > 200", (("上海",),)),
    ],
)  # fmt: skip
def test_questions(sql: str, rows: object, server: Database) -> None:
    assert server.run(check(sql, server.dialect, server.schema()), QUICK).rows == rows


def test_rows_are_cut(server: Database) -> None:
    result = server.run("SELECT id FROM orders ORDER BY id", QUICK)
    assert len(result.rows) == 50 and result.cut
    assert len(server.run("SELECT id FROM orders", Limits(rows=5000)).rows) == len(ROWS["orders"])


def test_the_server_itself_refuses_to_write(server: Database) -> None:
    for sql in RAW[server.dialect]:
        with pytest.raises(LuthierError):
            server.run(sql, QUICK)
    assert server.run("SELECT count(*) FROM orders").rows == ((2000,),)
    assert server.run("SELECT count(*) FROM customers").rows == ((3,),)


def test_nothing_outlives_the_time_limit(server: Database) -> None:
    for sql in LONG[server.dialect]:
        start = time.monotonic()
        try:
            result = server.run(sql, QUICK)
        except QueryError:
            pass
        else:  # MySQL's BENCHMARK and SLEEP end early and say 0 or 1
            assert len(result.rows) <= QUICK.rows
        assert time.monotonic() - start < QUICK.timeout_s + 20, sql
    assert server.run("SELECT count(*) FROM customers").rows == ((3,),)


def test_a_lost_connection_is_made_anew(server: Database) -> None:
    own = {"postgres": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}[server.dialect]
    ((first,),) = server.run(own).rows
    end = {"postgres": f"SELECT pg_terminate_backend({first})", "mysql": f"KILL {first}"}[server.dialect]
    with connect(server.target.url, QUICK) as other:
        other.run(end)
    ((second,),) = server.run(own).rows
    assert second != first


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql://user:secret@127.0.0.1:1/nothing", EngineError),
        ("mysql://user:secret@127.0.0.1:1/nothing", EngineError),
        ("postgresql://user:secret@127.0.0.1:notaport/x", InputError),
    ],
)
def test_no_server(url: str, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        connect(url)
    assert "secret" not in str(raised.value)
