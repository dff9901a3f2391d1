from __future__ import annotations

import json

import pytest

from luthier.cli import main
from luthier.store.audit import list_audit
from luthier.store.batches import claim_batches, create_batch, find_batch, update_batch
from luthier.store.database import open_store


@pytest.fixture
def run(home, capsys):
    """(exit code, stdout, stderr) of ``luthier batch ...``."""

    def ran(*arguments):
        code = 0
        try:
            main(["batch", *map(str, arguments)])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return ran


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": f"q{n}"}]}) for n in range(40)))
    return path


def test_a_file_is_answered(run, source, tmp_path):
    out = tmp_path / "out.jsonl"
    code, said, err = run("run", source, "-m", "fake", "-o", out, "--max-tokens", "5", "--temperature", "0")
    assert code == 0
    assert "40 answered" in said and "lines/s" in said
    assert "40/40" in err, "progress is on stderr"
    assert len(out.read_text().splitlines()) == 40
    code, said, _ = run("run", source, "-m", "fake", "-o", out)
    assert code == 0 and "40 were there" in said
    assert json.loads(run("run", source, "-m", "fake", "-o", out, "--overwrite", "--json")[1])["completed"] == 40


def test_exit_codes(run, source, tmp_path):
    out = tmp_path / "out.jsonl"
    source.write_text(source.read_text() + '\n{"messages": []}')
    code, said, err = run("run", source, "-m", "fake", "-o", out)
    assert code == 1 and "1 failed" in said and "1 times" in err
    source.write_text("{")
    code, said, err = run("run", source, "-m", "fake", "-o", tmp_path / "other.jsonl")
    assert (code, said) == (2, "") and "line 1" in err
    assert run("run", tmp_path / "none", "-m", "fake", "-o", out)[0] == 2
    source.write_text('{"messages": [{"role": "user", "content": "x"}]}')
    assert run("run", source, "-m", "no-such-model", "-o", tmp_path / "third.jsonl")[0] == 2
    assert not (tmp_path / "third.jsonl").read_bytes()


def test_batches_of_servers(run):
    assert "No batches" in run("list")[2]
    store = open_store()
    made = create_batch(
        store,
        tenant="acme",
        key_id="k",
        endpoint="/v1/embeddings",
        input_file="file_1",
        window="24h",
        expires_at="2999-01-01T00:00:00.000Z",
    )
    claim_batches(store, "w", 0.0, 10.0, 1)
    update_batch(store, "w", made.id, to="in_progress", total=7, completed=3)
    assert "acme" in run("list")[1] and "No batches" in run("list", "--tenant", "other")[2]
    assert json.loads(run("list", "--json")[1])[0]["request_counts"] == {"total": 7, "completed": 3, "failed": 0}
    shown = run("show", made.id)[1]
    assert "3 answered" in shown and "in_progress" in shown
    assert run("cancel", made.id)[1] == f"{made.id} is cancelling\n"
    assert find_batch(store, made.id).status == "cancelling"
    assert list_audit(store)[0].action == "batch.cancel"
    assert run("show", "batch_none")[0] == 2
    update_batch(
        store, "w", made.id, to="failed", errors=[{"code": "x", "line": 3, "message": "it is broken", "param": None}]
    )
    assert "line 3: it is broken" in run("show", made.id)[1]
    assert run("cancel", made.id)[0] == 2
