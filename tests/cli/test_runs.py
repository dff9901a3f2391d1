"""``luthier runs``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.store.database import open_store
from luthier.store.runs import finish, folder, start


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def ids(home: Path) -> list[str]:
    """A finished evaluation, a failed tuning, a finished tournament, and an evaluation whose process is dead."""
    store = open_store()
    made = [
        start(store, kind, name, {}, {}).id
        for kind, name in (("eval", "t/m"), ("tune", "lora"), ("tournament", "support"), ("eval", "t/dead"))  # type: ignore[arg-type]
    ]
    scores = {"primary": "accuracy", "scores": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}}
    finish(store, made[0], "done", scores)
    finish(store, made[1], "failed", {"error": "the loss is nan\nat step 3"})
    finish(store, made[2], "done", {"verdict": {"keep": "linear-probe"}})
    environment = folder(store, made[3]) / "environment.json"
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "pid": 2**22 + 1}))
    return made


def test_each_run_with_what_matters_most_of_it(ids: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("runs") == 0
    lines = capsys.readouterr().out.splitlines()

    def line(run_id: str) -> str:
        return next(text for text in lines if run_id in text)

    assert "accuracy 0.500 [0.400, 0.600]" in line(ids[0])
    assert "the loss is nan" in line(ids[1])
    assert "at step 3" not in "".join(lines)
    assert "keep linear-probe" in line(ids[2])
    assert "interrupted" in line(ids[3]), "its process is gone"


def test_json_kind_and_limit(ids: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("runs", "--kind", "eval", "--json") == 0
    assert [r["id"] for r in json.loads(capsys.readouterr().out)] == [ids[3], ids[0]]
    assert run("runs", "--limit", "1", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert run("runs", "--kind", "training") == 2
    assert "--kind must be one of tune, eval, tournament, continual, scaling; got 'training'" in capsys.readouterr().err


def test_an_empty_home_says_how_to_begin(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("runs") == 0
    assert "luthier tournament TASK.yaml" in capsys.readouterr().err
