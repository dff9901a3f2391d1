import json
import os
from pathlib import Path

import pytest

from luthier.core.errors import StoreError
from luthier.store.home import file_sha256, home, new_id, now, write_atomic


def test_home_follows_the_argument_then_the_variable_then_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "variable"))
    assert home(tmp_path / "argument").root == tmp_path / "argument"
    assert home().root == tmp_path / "variable"
    monkeypatch.delenv("LUTHIER_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    found = home()
    assert found.root == tmp_path / "user" / ".luthier"
    assert found.artifacts.is_dir() and found.runs.is_dir() and found.downloads.is_dir() and found.staging.is_dir()


def test_database_url_is_the_variable_or_a_file_in_the_home(home: Path, monkeypatch):
    from luthier.store.home import home as place

    assert place().database_url == f"sqlite:///{home / 'luthier.db'}"
    monkeypatch.setenv("LUTHIER_DATABASE_URL", "postgresql://somewhere/luthier")
    assert place().database_url == "postgresql://somewhere/luthier"


def test_a_home_below_a_file_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="file") as raised:
        home(tmp_path / "file" / "home")
    assert raised.value.exit_code == 4


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, "old")
    write_atomic(path, "neu ü".encode())
    assert path.read_text(encoding="utf-8") == "neu ü"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_write_leaves_the_old_content_or_the_new(home, crash_everywhere):
    home.mkdir()
    path = home / "state.json"
    old, new = json.dumps(["old"] * 1000), json.dumps(["new"] * 2000)
    path.write_text(old)
    seen = set()
    prepare = "from pathlib import Path\nfrom luthier.store.home import write_atomic\n"
    for _ in crash_everywhere(prepare, f"write_atomic(Path({str(path)!r}), {new!r})"):
        seen.add(path.read_text())
        path.write_text(old)
    assert seen == {old, new}, "killed both before the rename and after it"
    assert path.read_text() == old or path.read_text() == new


def test_a_full_disk_is_a_store_error_that_names_path_and_bytes(full_disk):
    write_atomic(full_disk / "small", b"kept")
    with pytest.raises(StoreError, match=r"disk is full.*big.*200,000 bytes") as raised:
        write_atomic(full_disk / "big", os.urandom(200_000))
    assert "LUTHIER_HOME" in raised.value.hint
    assert (full_disk / "small").read_bytes() == b"kept"
    assert [p.name for p in full_disk.iterdir()] == ["small"]


def test_ids_are_unique_and_sort_by_time():
    made = [new_id("run") for _ in range(2000)]
    assert len(set(made)) == 2000
    assert made == sorted(made)
    assert all(i.startswith("run_") for i in made)


def test_now_is_utc_with_milliseconds():
    import re
    from datetime import UTC, datetime

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", now())
    assert abs((datetime.now(UTC) - datetime.fromisoformat(now())).total_seconds()) < 5


def test_file_sha256_is_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
