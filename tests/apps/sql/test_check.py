from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from luthier.apps.sql.check import DIALECTS, check
from luthier.apps.sql.schema import Column, Schema, Table
from luthier.core.errors import InputError

SCHEMA = Schema(
    (
        Table("customers", tuple(map(Column, ("id", "name", "city", "email")))),
        Table("orders", tuple(map(Column, ("id", "customer_id", "total", "day")))),
        Table("订单", tuple(map(Column, ("编号", "城市", "金额")))),
    )
)

EVERYWHERE = [
    # more than one statement
    "SELECT 1; DROP TABLE customers", "SELECT 1;; DELETE FROM customers", "SELECT 1; SELECT 2", "; DROP TABLE customers", "",
    "SELECT 1 --\n; DELETE FROM customers", "SELECT 1 /* */; UPDATE customers SET name = 'x'", "BEGIN; DELETE FROM customers; COMMIT",
    "SELECT name FROM customers WHERE name = ''; DROP TABLE customers; --'",
    # writes
    "DELETE FROM customers", "UPDATE customers SET name = 'x'", "INSERT INTO customers (id) VALUES (9)", "REPLACE INTO customers (id) VALUES (9)",
    "DROP TABLE customers", "CREATE TABLE x (a INT)", "CREATE TABLE x AS SELECT * FROM customers", "ALTER TABLE customers ADD COLUMN x INT",
    "TRUNCATE TABLE customers", "CREATE VIEW v AS SELECT 1", "CREATE INDEX i ON customers (name)", "DELETE FROM customers RETURNING *",
    "INSERT INTO customers (id) VALUES (9) RETURNING id", "MERGE INTO customers USING orders ON TRUE WHEN MATCHED THEN DELETE",
    "WITH x AS (DELETE FROM customers RETURNING *) SELECT * FROM x", "WITH x AS (SELECT 1) DELETE FROM customers",
    "WITH x AS (UPDATE customers SET name = 'x' RETURNING id) SELECT id FROM x", "SELECT * INTO copy FROM customers",
    "EXPLAIN ANALYZE DELETE FROM customers", "EXPLAIN SELECT 1", "DESCRIBE customers", "SHOW TABLES", "SELECT * FROM customers FOR UPDATE",
    "SELECT * FROM customers FOR SHARE", "GRANT ALL ON customers TO PUBLIC", "VACUUM", "ANALYZE", "REINDEX", "CHECKPOINT", "SET x = 1",
    "CALL f()", "DO $$ BEGIN DELETE FROM customers; END $$", "PREPARE p AS DELETE FROM customers", "EXECUTE p", "LOCK TABLE customers",
    "EXECUTE IMMEDIATE 'DROP TABLE customers'", "LISTEN x", "USE mysql", "KILL 1", "COMMENT ON TABLE customers IS 'x'",
    # files, programs, the network
    "ATTACH '/tmp/x' AS y", "DETACH y", "COPY customers TO '/tmp/x'", "COPY (SELECT 1) TO '/tmp/x'", "COPY customers FROM '/etc/passwd'",
    "COPY customers TO PROGRAM 'id'", "EXPORT DATABASE '/tmp/x'", "IMPORT DATABASE '/tmp/x'", "INSTALL httpfs", "LOAD httpfs",
    "SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM read_text('/etc/passwd')", "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_parquet('x')", "SELECT * FROM read_json_auto('x')", "SELECT * FROM glob('/etc/*')", "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM sqlite_scan('x', 'y')", "SELECT * FROM postgres_query('x', 'y')", "SELECT * FROM query('DROP TABLE customers')",
    "SELECT * FROM query_table('customers')", "SELECT load_extension('x')", "SELECT readfile('/etc/passwd')", "SELECT writefile('/tmp/x', 'y')",
    "SELECT edit('x')", "SELECT fts3_tokenizer('x')", "SELECT load_file('/etc/passwd')", "SELECT LOAD_FILE(0x2F6574632F706173737764)",
    "SELECT pg_read_file('/etc/passwd')", "SELECT pg_read_binary_file('x')", "SELECT pg_ls_dir('/')", "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, '/tmp/x')", "SELECT lo_get(1)", "SELECT dblink('x', 'y')", "SELECT dblink_exec('x', 'DROP TABLE y')",
    "SELECT * FROM dblink('x', 'y') AS t(a INT)", "SELECT query_to_xml('DROP TABLE x', TRUE, TRUE, '')", "SELECT database_to_xml(TRUE, TRUE, '')",
    "SELECT xpath('/a', 'b')", "SELECT getenv('HOME')", "SELECT sys_exec('id')", "SELECT * FROM customers INTO OUTFILE '/tmp/x'",
    # waiting, locks, sessions
    "SELECT pg_sleep(100)", "SELECT PG_SLEEP(100)", "SELECT pg_catalog.pg_sleep(100)", 'SELECT "pg_sleep"(100)', "SELECT sleep(100)",
    "SELECT BENCHMARK(1000000000, MD5('x'))", "SELECT pg_advisory_lock(1)", "SELECT get_lock('x', 100)", "SELECT set_config('x', 'y', FALSE)",
    "SELECT current_setting('x')", "SELECT pg_terminate_backend(1)", "SELECT pg_cancel_backend(1)", "SELECT pg_reload_conf()",
    "SELECT nextval('s')", "SELECT setval('s', 1)", "SELECT txid_current()", "SELECT pg_notify('a', 'b')", "SELECT master_pos_wait('a', 1, 1)",
    "SELECT id FROM customers WHERE 1 = (SELECT pg_sleep(9))", "SELECT id FROM customers ORDER BY sleep(9)",
    "SELECT CASE WHEN TRUE THEN pg_sleep(9) END", "SELECT id FROM customers GROUP BY id HAVING sleep(9) = 0",
    "SELECT 1 UNION SELECT pg_sleep(9)", "WITH x AS (SELECT pg_sleep(9)) SELECT * FROM x", "SELECT count(*) FILTER (WHERE pg_sleep(9) IS NULL) FROM orders",
    # who and what else is there
    "SELECT * FROM sqlite_master", "SELECT * FROM sqlite_schema", "SELECT * FROM pragma_table_info('customers')", "PRAGMA writable_schema = 1",
    "SELECT * FROM information_schema.tables", "SELECT * FROM pg_catalog.pg_authid", "SELECT * FROM pg_shadow", "SELECT * FROM mysql.user",
    "SELECT * FROM other.customers", "SELECT * FROM a.b.c", "SELECT * FROM duckdb_secrets()", "SELECT * FROM duckdb_settings()",
    "SELECT current_user", "SELECT session_user", "SELECT version()", "SELECT current_database()", "SELECT @@version", "SELECT @a := 1",
    "SELECT user", "SELECT 'customers'::regclass", "SELECT CAST('x' AS nasty_type)", "SELECT CAST('x' AS evil.nasty)",
    # sets without end
    "SELECT * FROM generate_series(1, 100000000000)", "SELECT * FROM range(100000000000)", "SELECT generate_series(1, 100000000000)",
    "SELECT list_aggregate(range(1000000000), 'sum')", "SELECT randomblob(1000000000)", "SELECT zeroblob(1000000000)",
    "SELECT hex(zeroblob(500000000))", "SELECT array_fill(1, ARRAY[100000, 100000])",
    # hidden, or nothing at all
    "SELECT 1\x00; DROP TABLE customers", "SELECT \x1b 1", "SELECT $1", "SELECT ?", "SELECT :name", "this is no query",
    "SEL\u200bECT 1; DROP TABLE customers", "\u0441ELECT 1", "VALUES (load_extension('x'))", "SELECT /*! sleep(9) */ nosuch FROM customers",
    "SELECT {fn sleep(9)}", "SELECT " + "(" * 400 + "1" + ")" * 400, "SELECT " + ", ".join(["1"] * 6000), "SELECT '" + "x" * 30_000 + "'",
]  # fmt: skip

FINE = [
    "SELECT name FROM customers", "select NAME from CUSTOMERS order by Name desc limit 2", "SELECT count(*) FROM orders WHERE total > 100",
    "SELECT city, count(*) AS n FROM customers GROUP BY city HAVING count(*) > 1 ORDER BY n DESC",
    "SELECT c.name, sum(o.total) FROM customers AS c JOIN orders AS o ON o.customer_id = c.id GROUP BY c.name",
    "WITH big AS (SELECT customer_id, max(total) AS most FROM orders GROUP BY customer_id) SELECT name, most FROM big JOIN customers ON id = customer_id",
    "SELECT name FROM customers WHERE id IN (SELECT customer_id FROM orders WHERE day LIKE '2026-01%')",
    "SELECT name FROM customers EXCEPT SELECT name FROM customers WHERE city = 'Oslo'", "SELECT round(avg(total), 2) FROM orders",
    "SELECT substr(day, 1, 7) AS month, sum(total) FROM orders GROUP BY month ORDER BY month", 'SELECT "城市", sum("金额") FROM "订单" GROUP BY "城市"',
    "SELECT CASE WHEN total > 50 THEN 'much' ELSE 'little' END AS size, count(*) FROM orders GROUP BY size",
    "SELECT name, row_number() OVER (ORDER BY name) AS place FROM customers", "SELECT x.n FROM (SELECT count(*) AS n FROM orders) AS x",
    "SELECT coalesce(email, 'none') FROM customers", "SELECT name FROM customers;", "SELECT upper(name) || '!' FROM customers -- a comment",
]  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_hostile_queries_are_refused(dialect: str) -> None:
    let_through = []
    for sql in EVERYWHERE:
        try:
            let_through.append((sql, check(sql, dialect, SCHEMA)))
        except InputError as error:
            assert error.message
    assert let_through == []


def test_what_mysql_alone_runs_in_comments_is_not_run() -> None:
    written = check("SELECT name /*!50000 , sleep(9) */ FROM customers", "mysql", SCHEMA)
    assert "sleep" not in written.lower() and "/*" not in written


@pytest.mark.parametrize("sql", FINE)
def test_what_is_written_anew_means_the_same(sql: str, shops: dict[str, Path]) -> None:
    raw = sqlite3.connect(shops["sqlite"])
    try:
        expected = raw.execute(sql).fetchall()
        assert raw.execute(check(sql, "sqlite", SCHEMA)).fetchall() == expected
    finally:
        raw.close()
    for dialect in DIALECTS:
        check(sql.replace('"', "`") if dialect == "mysql" else sql, dialect, SCHEMA)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT name FROM custommers", "Did you mean 'customers'"),
        ("SELECT nmae FROM customers", "Did you mean 'name'?"),
        ("SELECT c.totl FROM customers c JOIN orders o ON c.id = o.customer_id", "Did you mean 'total'?"),
        ("SELECT name FROM 订", "订单"),
        ("SELECT sleep(9)", "the function sleep is not on the list"),
        ("SELECT name FROM", "cannot be parsed"),
        ("", "exactly one query is run; got 0"),
        ("DELETE FROM customers", "only SELECT is run; got DELETE"),
    ],
)
def test_a_refusal_says_what_and_what_instead(sql: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        check(sql, "sqlite", SCHEMA)
    assert said in error.value.message


def test_a_quoted_name_that_is_no_column_is_text_in_sqlite() -> None:
    assert check('SELECT name FROM customers WHERE city = "Oslo"', "sqlite", SCHEMA)


def test_unknown_dialect() -> None:
    with pytest.raises(InputError, match="dialect must be one of"):
        check("SELECT 1", "oracle", SCHEMA)
