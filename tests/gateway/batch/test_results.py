from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from luthier.core.errors import StoreError
from luthier.gateway.batch.lines import Line, row_of, unasked_row
from luthier.gateway.batch.results import Results


def good(name):
    return row_of(Line(1, name, {}), "t", {"said": name})


def bad(name):
    return unasked_row(Line(1, name, {}), "x", "y")


def test_rows_are_there_when_the_file_is_opened_again(tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(path) as results:
        results.append([good("a"), bad("b")])
        results.append([good("c")])
        assert (results.completed, results.failed, results.done) == (2, 1, {"a", "b", "c"})
    with Results(path) as again:
        assert (again.completed, again.failed, again.done) == (2, 1, {"a", "b", "c"})
        assert [(json.loads(data)["custom_id"], kept) for data, kept in again.rows()] == [
            ("a", True),
            ("b", False),
            ("c", True),
        ]
    again.close()


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_end_is_cut_off(tmp_path, cut):
    path = tmp_path / "results.jsonl"
    with Results(path) as results:
        results.append([good("a"), good("b")])
    path.write_bytes(path.read_bytes()[:-cut])
    with Results(path) as again:
        assert again.done == {"a"}
        again.append([good("c")])
    assert [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_text_that_is_no_unicode(tmp_path):
    with Results(tmp_path / "r") as results:
        results.append([row_of(Line(1, "a", {}), "t", {"said": "half \ud83d"})])
    with Results(tmp_path / "r") as again:
        assert again.done == {"a"}


def test_a_full_disk_leaves_what_was_whole(tmp_path, monkeypatch):
    import errno

    path = tmp_path / "r"
    with Results(path) as results:
        results.append([good("a")])
        before = path.read_bytes()
        real = os.write

        def full(descriptor, data):
            real(descriptor, data[:10])
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StoreError, match="full"):
            results.append([good("b")])
        monkeypatch.undo()
        assert path.read_bytes() == before and results.done == {"a"}
        results.append([good("c")])
    with Results(path) as again:
        assert again.done == {"a", "c"}


def test_a_kill_between_any_two_writes_loses_nothing_that_was_said_to_be_kept(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from luthier.gateway.batch.results import Results\n"
        "from luthier.gateway.batch.lines import Line, row_of\n"
        "results = Results(__import__('pathlib').Path(sys.argv[1]))\n"
        "for n in range(1000):\n"
        "    results.append([row_of(Line(1, f'{n}-{k}', {}), 't', {'x': 'y' * 500}) for k in range(3)])\n"
        "    print(n, flush=True)\n"
    )
    path = tmp_path / "r"
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    said = [child.stdout.readline().strip() for _ in range(20)]
    child.kill()
    said += child.stdout.read().split()
    child.wait()
    with Results(path) as results:
        assert {f"{n}-{k}" for n in said for k in range(3)} <= results.done
