import os
import sqlite3
import subprocess
import sys

import pytest
import sqlalchemy as sa
from sqlalchemy import insert, select, text

from luthier.core.errors import MissingExtraError, StoreError
from luthier.store import database
from luthier.store.database import HEAD, Store, metadata, open_store, runs, to_json
from luthier.store.migrations import configuration, upgrade

ROW = {"kind": "tune", "status": "running", "name": "n", "key": "", "created_at": "2026", "summary": {}}


def revisions():
    from alembic.script import ScriptDirectory

    return [script.revision for script in reversed(list(ScriptDirectory.from_config(configuration()).walk_revisions()))]


def test_head_is_the_last_migration_file():
    assert revisions()[-1] == HEAD
    assert revisions() == sorted(revisions()), "numbers say the order"


@pytest.mark.parametrize("begin", [None, *revisions()])
def test_every_earlier_schema_migrates_to_the_current_one(home, begin):
    """From an empty database and from each numbered schema, the result has exactly the tables of tables.py."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    home.mkdir()
    engine = database._engine(f"sqlite:///{home / 'luthier.db'}")
    if begin is not None:
        with engine.begin() as connection:
            upgrade(connection, begin)
    engine.dispose()
    store = Store.open(home)
    assert store.version() == HEAD
    with store.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert connection.execute(text("PRAGMA foreign_key_check")).all() == []


def test_downgrade_and_upgrade_give_the_same_schema(home):
    from alembic import command

    store = Store.open(home)

    def schema():
        with store.read() as connection:
            return sorted(connection.execute(text("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")).scalars())

    before = schema()
    with store.write() as connection:
        command.downgrade(configuration(connection), "base")
    assert len(schema()) < len(before)
    with store.write() as connection:
        upgrade(connection)
    assert schema() == before


def test_a_failed_migration_leaves_the_old_state(home, monkeypatch):
    from luthier.store import migrations

    real = migrations.upgrade

    def breaks(connection, to="head"):
        real(connection, to)
        raise RuntimeError("half way")

    monkeypatch.setattr(migrations, "upgrade", breaks)
    with pytest.raises(RuntimeError):
        Store.open(home)
    with sqlite3.connect(home / "luthier.db") as raw:
        assert raw.execute("SELECT name FROM sqlite_master").fetchall() == []
    monkeypatch.undo()
    assert Store.open(home).version() == HEAD


def test_opening_a_current_store_imports_no_alembic(store, home):
    code = (
        "import sys; from luthier.store.database import open_store; open_store();"
        "print([m for m in ('alembic', 'torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    env = {**os.environ, "LUTHIER_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_store_of_a_newer_version_is_refused(store, home):
    with store.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"9999.*newer") as raised:
        Store.open(home)
    assert "upgrade" in raised.value.hint


def test_sqlite_is_opened_with_wal_foreign_keys_and_a_busy_timeout(store):
    with store.read() as connection:
        said = {
            p: connection.execute(text(f"PRAGMA {p}")).scalar()
            for p in ("journal_mode", "foreign_keys", "busy_timeout")
        }
    assert said == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30_000}


def test_write_commits_or_undoes_everything(store):
    with pytest.raises(RuntimeError), store.write() as connection:
        connection.execute(insert(runs).values(id="a", **ROW))
        raise RuntimeError
    with store.write() as connection:
        connection.execute(insert(runs).values(id="b", **ROW))
    with store.read() as connection:
        assert connection.execute(select(runs.c.id)).scalars().all() == ["b"]


def test_readers_do_not_wait_for_a_writer(store):
    with store.write() as writing:
        writing.execute(insert(runs).values(id="a", **ROW))
        with store.read() as connection:
            assert connection.execute(select(runs.c.id)).all() == []


def test_a_lock_held_too_long_is_a_store_error(store, home, monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 20)
    second = Store(store.home, database._engine(store.home.database_url))
    with store.write(), pytest.raises(StoreError, match="locked") as raised, second.write():
        pass
    assert "another process" in raised.value.hint


def test_a_damaged_database_is_a_store_error(home):
    home.mkdir()
    (home / "luthier.db").write_bytes(b"this is not a database at all" * 100)
    with pytest.raises(StoreError, match=r"luthier\.db.*not a database") as raised:
        open_store(home)
    assert "damaged" in raised.value.hint


def test_a_full_disk_is_a_store_error_and_loses_nothing(home, monkeypatch):
    store = Store.open(home)
    with store.write() as connection:
        connection.execute(insert(runs).values(id="kept", **ROW))
    with store.engine.connect() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar()
        connection.execute(text(f"PRAGMA max_page_count = {pages}"))  # SQLite's own way to be full
    with pytest.raises(StoreError, match="full") as raised, store.write() as connection:
        for number in range(1000):
            connection.execute(insert(runs).values(id=str(number), **{**ROW, "summary": {"x": "y" * 1000}}))
    assert "free space" in raised.value.hint
    with store.read() as connection:
        assert connection.execute(select(runs.c.id)).scalars().all() == ["kept"]


WRITER = """
import sys
from sqlalchemy import insert, select, update
from luthier.store.database import Store, runs
store = Store.open()
print("ready", flush=True); sys.stdin.readline()
for i in range(60):
    with store.write() as c:
        seen = c.execute(select(runs.c.summary).where(runs.c.id == "counter")).scalar_one_or_none()
        if seen is None:
            c.execute(insert(runs).values(id="counter", kind="tune", status="x", name="", key="", created_at="", summary={"n": 1}))
        else:
            c.execute(update(runs).where(runs.c.id == "counter").values(summary={"n": seen["n"] + 1}))
"""


def start(code, home):
    env = {**os.environ, "LUTHIER_HOME": str(home)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_processes_that_open_an_empty_store_and_write_at_once_lose_nothing(home):
    """Three processes migrate the same empty store, then read, add one and write back 60 times each."""
    processes = [start(WRITER, home) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    with open_store(home).read() as connection:
        assert connection.execute(select(runs.c.summary)).scalar_one() == {"n": 180}


def test_a_process_killed_inside_a_transaction_leaves_the_old_state(store, home):
    code = (
        "import os, signal\nfrom sqlalchemy import insert\nfrom luthier.store.database import Store, runs\n"
        f"with Store.open().write() as c:\n c.execute(insert(runs).values(id='half', **{ROW!r}))\n"
        " os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = start(code, home)
    process.communicate(timeout=60)
    assert process.returncode == -9
    with store.read() as connection:
        assert connection.execute(select(runs.c.id)).all() == []
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"


def test_open_store_is_opened_once_a_process_and_home(home, tmp_path):
    assert open_store() is open_store(home)
    assert open_store(tmp_path / "other") is not open_store()


def test_a_database_without_its_driver_names_the_extra(home, monkeypatch):
    import importlib.util

    if importlib.util.find_spec("psycopg"):
        pytest.skip("psycopg is installed")
    monkeypatch.setenv("LUTHIER_DATABASE_URL", "postgresql://user:secret@127.0.0.1:1/luthier")
    with pytest.raises(MissingExtraError, match="psycopg") as raised:
        open_store()
    assert "luthier[postgres]" in raised.value.hint and "secret" not in str(raised.value)


def test_to_json_takes_numbers_of_numpy_and_torch_and_turns_nan_into_null():
    import json
    from pathlib import Path

    import numpy as np

    value = {"a": np.float32(1.5), "b": [float("nan"), float("inf"), 2], "c": Path("/x"), "d": "ü", "e": np.int64(3)}
    assert json.loads(to_json(value)) == {"a": 1.5, "b": [None, None, 2], "c": "/x", "d": "ü", "e": 3}
    assert "ü" in to_json(value)
    with pytest.raises(TypeError, match="object"):
        to_json({"x": object()})


def test_nothing_but_connection_settings_is_sqlite_only():
    """Every statement of the tables compiles for PostgreSQL."""
    from sqlalchemy.dialects import postgresql

    for table in metadata.sorted_tables:
        assert "CREATE TABLE" in str(sa.schema.CreateTable(table).compile(dialect=postgresql.dialect()))
