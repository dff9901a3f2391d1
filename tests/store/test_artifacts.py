import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.core.errors import StoreError
from luthier.core.model import ModelRecord
from luthier.store import artifacts
from luthier.store.models import register

FILES = {"b.txt": b"two", "a.bin": os.urandom(3000), "deep/er/c.json": b"{}"}


def fill(folder: Path, files=FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def put(store, files=FILES):
    with artifacts.staged(store) as folder:
        return artifacts.put(store, fill(folder, files))


def test_the_digest_is_over_sorted_names_and_hashes(store):
    digest, size = put(store)
    pairs = [[name, hashlib.sha256(FILES[name]).hexdigest()] for name in sorted(FILES)]
    canonical = json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    assert digest == hashlib.sha256(canonical.encode()).hexdigest()
    assert size == sum(map(len, FILES.values()))
    folder = artifacts.path_of(store, digest)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert artifacts.files(store, digest) == {name: len(content) for name, content in FILES.items()}
    artifacts.verify(store, digest)


def test_put_is_idempotent_and_content_decides(store):
    assert put(store) == put(store, dict(reversed(FILES.items())))
    assert put(store)[0] != put(store, {**FILES, "b.txt": b"other"})[0]
    assert put(store)[0] != put(store, {**FILES, "new name": b"two"})[0]
    assert len(list(store.home.artifacts.iterdir())) == 3
    assert list(store.home.staging.iterdir()) == []


def test_a_folder_from_another_place_is_moved_in(store, tmp_path):
    place = fill(tmp_path / "mine")
    digest, _ = artifacts.put(store, place)
    assert not place.exists()
    artifacts.verify(store, digest)


def test_a_folder_from_another_disk_is_moved_in(store, full_disk):
    if full_disk.stat().st_dev == store.home.root.stat().st_dev:
        pytest.skip("may not mount a second disk here")
    digest, _ = artifacts.put(store, fill(full_disk / "model", {"a": b"x"}))
    artifacts.verify(store, digest)
    assert not (full_disk / "model").exists()


@pytest.mark.parametrize("name", ["b.txt", "deep/er/c.json"])
def test_damage_names_the_file_and_the_command(store, name):
    digest, size = put(store)
    register(store, ModelRecord("mine", "base", "decoder", digest, size))
    path = artifacts.path_of(store, digest) / name
    old = path.read_bytes()
    path.write_bytes(bytes(len(old)))  # the same size: only the hash tells
    artifacts.path_of(store, digest)
    with pytest.raises(StoreError, match=f"'mine' is damaged.*{name}.*sha256") as raised:
        artifacts.verify(store, digest)
    assert raised.value.hint == "luthier pull mine --force"
    path.write_bytes(old + b"!")
    with pytest.raises(StoreError, match=f"{name} has .* bytes instead of"):
        artifacts.path_of(store, digest)
    path.unlink()
    with pytest.raises(StoreError, match=f"{name} is missing"):
        artifacts.path_of(store, digest)


def test_a_damaged_adapter_names_what_made_it_and_an_unknown_artifact_is_missing(store):
    digest, size = put(store)
    register(store, ModelRecord("mine", "adapter", "decoder", digest, size, base="b"))
    (artifacts.path_of(store, digest) / artifacts.LIST_NAME).unlink()
    with pytest.raises(StoreError, match="adapter 'mine'") as raised:
        artifacts.path_of(store, digest)
    assert "luthier lineage mine" in raised.value.hint
    with pytest.raises(StoreError, match="is missing"):
        artifacts.path_of(store, "0" * 64)


def test_files_that_another_artifact_has_are_on_the_disk_once(store):
    first, _ = put(store)
    with artifacts.staged(store) as folder:
        second, size = artifacts.put(store, fill(folder, {**FILES, "b.txt": b"other"}), beside=first)
    assert size == sum(map(len, FILES.values())) + 2
    one, other = (artifacts.path_of(store, digest) for digest in (first, second))
    same = {name: (one / name).stat().st_ino == (other / name).stat().st_ino for name in FILES}
    assert same == {"a.bin": True, "deep/er/c.json": True, "b.txt": False}
    assert (other / "b.txt").read_bytes() == b"other"
    artifacts.verify(store, second)


def test_putting_the_content_again_heals_a_damaged_artifact(store):
    digest, _ = put(store)
    (store.home.artifacts / digest / "a.bin").write_bytes(b"")
    (store.home.artifacts / digest / "b.txt").unlink()
    put(store)
    artifacts.verify(store, digest)
    assert list(store.home.staging.iterdir()) == []


def test_a_changed_file_list_is_damage(store):
    digest, _ = put(store)
    path = store.home.artifacts / digest / artifacts.LIST_NAME
    listed = json.loads(path.read_text())
    listed.pop("b.txt")
    path.write_text(json.dumps(listed))
    with pytest.raises(StoreError, match="has changed"):
        artifacts.verify(store, digest)
    path.write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        artifacts.path_of(store, digest)


def test_links_and_empty_folders_are_refused(store):
    with artifacts.staged(store) as folder:
        with pytest.raises(StoreError, match="empty"):
            artifacts.put(store, folder)
        (folder / "passwords").symlink_to("/etc/passwd")
        with pytest.raises(StoreError, match="link"):
            artifacts.put(store, folder)


def test_a_failed_block_leaves_no_staging_folder(store):
    with pytest.raises(RuntimeError), artifacts.staged(store) as folder:
        fill(folder)
        raise RuntimeError
    assert list(store.home.staging.iterdir()) == []
    assert list(store.home.artifacts.iterdir()) == []


def test_a_full_disk_in_a_staged_block_is_a_store_error(store):
    import errno

    with pytest.raises(StoreError, match="disk is full"), artifacts.staged(store):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), artifacts.staged(store) as folder:
        (folder / "missing").read_text()


def test_put_killed_at_any_disk_operation_leaves_whole_artifacts_only(store, crash_everywhere):
    prepare = (
        "from luthier.store import artifacts\nfrom luthier.store.database import open_store\n"
        "def fill(folder):\n (folder / 'x').mkdir()\n (folder / 'x' / 'a').write_text('a' * 9999)\n (folder / 'b').write_text('b')\n"
    )
    code = (
        "store = open_store()\nwith artifacts.staged(store) as folder:\n fill(folder)\n artifacts.put(store, folder)\n"
    )
    outcomes = set()
    for _ in crash_everywhere(prepare, code):
        stored = [path.name for path in store.home.artifacts.iterdir()]
        for digest in stored:
            artifacts.verify(store, digest)
        outcomes.add(len(stored))
        for place in store.home.staging.iterdir():
            os.utime(place, (1, 1))  # killed before it had its lock: goes after an hour
        artifacts.clean_staging(store)
        assert list(store.home.staging.iterdir()) == []
    assert outcomes == {0, 1}, "killed both before the artifact appeared and after it"
    [digest] = [path.name for path in store.home.artifacts.iterdir()]
    artifacts.verify(store, digest)


def test_staging_of_dead_processes_is_cleaned_and_of_living_ones_kept(store, home):
    code = (
        "import sys\nfrom luthier.store import artifacts\nfrom luthier.store.database import open_store\n"
        "with artifacts.staged(open_store()) as folder:\n (folder / 'half').write_text('x'); print('in', flush=True)\n"
        " sys.stdin.readline()\n"
    )
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, env=dict(os.environ), text=True)
    assert process.stdout.readline() == "in\n"
    assert artifacts.clean_staging(store) == 0
    assert len(list(store.home.staging.glob("*/content/half"))) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list(store.home.staging.glob("*/content/half"))) == 1
    with artifacts.staged(store):
        assert list(store.home.staging.glob("*/content/half")) == []


def test_a_staging_folder_without_a_lock_goes_after_an_hour(store):
    place = store.home.staging / "1-x"
    place.mkdir()
    assert artifacts.clean_staging(store) == 0
    os.utime(place, (1, 1))
    assert artifacts.clean_staging(store) == 1
    assert not place.exists()


def test_discard_removes_what_no_model_uses(store):
    digest, size = put(store)
    record = register(store, ModelRecord("mine", "base", "decoder", digest, size))
    assert not artifacts.discard_unused(store, digest)
    artifacts.verify(store, digest)
    register(store, replace(record, digest="e" * 64), replace=True)
    assert list(store.home.artifacts.iterdir()) == [] and list(store.home.staging.iterdir()) == []
    assert not artifacts.discard_unused(store, digest)
