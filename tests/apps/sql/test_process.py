"""What holds when the check does not: queries go straight to the process that holds the database."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from tests.apps.sql.conftest import QUICK, digest

from luthier.apps.sql.connect import Database, Limits, QueryError, connect

WRITES = [
    "DELETE FROM customers", "UPDATE customers SET name = 'x'", "INSERT INTO customers (id) VALUES (9)", "DROP TABLE customers",
    "CREATE TABLE x (a INT)", "CREATE TEMP TABLE x (a INT)", "ATTACH '{folder}/evil.db' AS y", "VACUUM", "VACUUM INTO '{folder}/evil.db'",
    "PRAGMA writable_schema = 1", "PRAGMA journal_mode = WAL", "PRAGMA user_version = 7", "COPY customers TO '{folder}/evil.csv'",
    "COPY (SELECT 1) TO '{folder}/evil.csv'", "EXPORT DATABASE '{folder}/evil'", "SET enable_external_access = true", "INSTALL httpfs", "LOAD httpfs",
    "SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM read_text('/etc/passwd')", "SELECT * FROM '/etc/passwd'", "SELECT getenv('HOME')",
    "SELECT load_extension('x')", "SELECT writefile('{folder}/evil', 'y')", "SELECT readfile('/etc/passwd')", "SELECT fts3_tokenizer('simple')",
    "SELECT 1; DELETE FROM customers", "BEGIN IMMEDIATE", "SELECT * FROM glob('/etc/pass*')", "SELECT * FROM pragma_function_list",
    "SELECT zeroblob(1000000000)", "SELECT * FROM sqlite_scan('{folder}/shop.sqlite', 'customers')", "REINDEX customers", "ANALYZE",
]  # fmt: skip
BOMBS = {
    "sqlite": [
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
        "SELECT count(*) FROM orders a, orders b, orders c, orders d",
        "SELECT group_concat(a.day || b.day || c.day) FROM orders a, orders b, orders c",
        "WITH RECURSIVE c(x) AS (SELECT 'xxxxxxxxxx' UNION ALL SELECT x || x FROM c) SELECT max(length(x)) FROM c",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c ORDER BY -x",
        "SELECT replace(group_concat(a.day), '2', (SELECT group_concat(b.day) FROM orders b)) FROM orders a",
        "SELECT printf('%.*c', 2000000000, 'x')",
    ],
    "duckdb": [
        "SELECT count(*) FROM orders a, orders b, orders c, orders d",
        "SELECT lpad('x', 2000000000, 'y') FROM orders",
        "SELECT repeat('x', 4000000000)",
        "SELECT list_aggregate(range(1000000000), 'sum')",
        "SELECT string_agg(a.day || b.day || c.day) FROM orders a, orders b, orders c",
        "SELECT count(DISTINCT a.id * b.id + c.id) FROM orders a, orders b, orders c",
        "WITH RECURSIVE c AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
        "SELECT * FROM range(100000000000) ORDER BY random()",
    ],
}


def alive(database: Database) -> int:
    """The pid of its process."""
    pid = database._process.pid
    assert pid is not None
    return pid


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_nothing_is_written_or_read_outside_even_unchecked(kind: str, shops: dict[str, Path], tmp_path: Path) -> None:
    before = digest(shops[kind])
    with connect(shops[kind], QUICK) as database:
        for sql in WRITES:
            try:
                result = database.run(sql.format(folder=tmp_path), QUICK)
            except QueryError:
                continue
            shown = str(result.rows)
            assert "root:" not in shown and str(Path.home()) not in shown, sql
        assert database.run("SELECT count(*) FROM customers").rows == ((3,),)
    assert digest(shops[kind]) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_bombs_end_within_time_and_memory(kind: str, shops: dict[str, Path]) -> None:
    with connect(shops[kind], QUICK) as database:
        open_rss = psutil.Process(alive(database)).memory_info().rss
        most, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                pid = database._process.pid
                if pid is not None:
                    try:
                        most[0] = max(most[0], psutil.Process(pid).memory_info().rss)
                    except psutil.Error:
                        continue

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for sql in BOMBS[kind]:
                start = time.monotonic()
                try:
                    result = database.run(sql, QUICK)
                except QueryError:
                    pass
                else:  # it was small after all, or its values were cut
                    assert sum(len(str(row)) for row in result.rows) < QUICK.result_bytes, sql
                assert time.monotonic() - start < QUICK.timeout_s + 20, (
                    sql
                )  # a busy machine takes long to start the next process
            assert database.run("SELECT count(*) FROM customers").rows == ((3,),)
        finally:
            done.set()
            watcher.join()
    assert most[0] < open_rss + (QUICK.memory_mb + 400) * 2**20


def test_a_query_that_its_database_does_not_stop_is_killed_and_the_next_one_runs(shops: dict[str, Path]) -> None:
    with connect(shops["duckdb"], QUICK) as database:
        first = alive(database)
        os.kill(first, signal.SIGSTOP)  # deaf to every interrupt, as a function in C is
        start = time.monotonic()
        with pytest.raises(QueryError, match="longer than"):
            database.run("SELECT 1", QUICK)
        assert time.monotonic() - start < QUICK.timeout_s + 20
        assert not psutil.pid_exists(first)
        assert database.run("SELECT count(*) FROM orders").rows == ((2000,),)
        assert alive(database) != first


def test_killed_between_and_during_queries(shop: Database) -> None:
    first = alive(shop)
    os.kill(first, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(first)] if psutil.pid_exists(first) else [], timeout=5)
    assert shop.run("SELECT count(*) FROM customers").rows == ((3,),)
    second = alive(shop)
    timer = threading.Timer(0.1, os.kill, (second, signal.SIGKILL))
    timer.start()
    with pytest.raises(QueryError, match=r"ended \(signal 9\)"):
        shop.run("SELECT count(*) FROM orders a, orders b, orders c", Limits(timeout_s=20))
    timer.join()
    assert shop.run("SELECT count(*) FROM customers").rows == ((3,),)


def test_the_process_is_kept_between_queries(shop: Database) -> None:
    shop.run("SELECT 1")
    pid = alive(shop)
    for _ in range(20):
        shop.run("SELECT count(*) FROM orders")
    with pytest.raises(QueryError):
        shop.run("SELECT nosuch FROM orders")
    assert alive(shop) == pid


def test_close_ends_the_process_and_so_does_the_parents_end(shops: dict[str, Path]) -> None:
    database = connect(shops["sqlite"])
    pid = alive(database)
    database.close()
    database.close()
    assert not psutil.pid_exists(pid)
    code = (
        "import os, sys\nfrom luthier.apps.sql.connect import connect\n"
        "d = connect(sys.argv[1]); print(d._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(shops["sqlite"])], capture_output=True, text=True, check=False
    )
    orphan = int(ran.stdout)
    _, left = psutil.wait_procs([psutil.Process(orphan)] if psutil.pid_exists(orphan) else [], timeout=5)
    assert left == []


def test_the_process_sees_no_secrets(shops: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with connect(shops["sqlite"]) as database:
        assert "OPENAI_API_KEY" not in psutil.Process(alive(database)).environ()


@pytest.mark.skipif(sys.platform != "linux", reason="the limits of a process are read from /proc")
def test_the_process_may_write_no_file_and_take_bounded_memory(shop: Database) -> None:
    shop.run("SELECT 1")
    limits = Path(f"/proc/{alive(shop)}/limits").read_text(encoding="ascii")
    assert any(line.split()[3:5] == ["0", "0"] for line in limits.splitlines() if line.startswith("Max file size"))
    space = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert space.split()[3] != "unlimited"


def test_queries_of_several_threads_wait_for_each_other(shop: Database) -> None:
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append((n, shop.run(f"SELECT {n} + count(*) FROM customers").rows)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(n, ((n + 3,),)) for n in range(8)]  # type: ignore[type-var]


def test_a_database_that_kills_its_reader(tmp_path: Path) -> None:
    broken = tmp_path / "broken.sqlite"
    connection = sqlite3.connect(broken)
    connection.execute("CREATE TABLE t (a)")
    connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 200)
    connection.commit()
    connection.close()
    data = bytearray(broken.read_bytes())
    data[4096 + 8 : 4096 + 3000] = os.urandom(2992)
    broken.write_bytes(bytes(data))
    with connect(broken) as database, pytest.raises(QueryError):
        database.run("SELECT sum(length(a)), max(a) FROM t WHERE a > 0 ORDER BY a")
