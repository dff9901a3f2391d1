"""``luthier promote``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def task(tiny_decoder: str, tiny_encoder: str, tmp_path: Path) -> str:
    rows = [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "task.yaml"
    path.write_text(
        "name: sorting\ndata: {path: rows.jsonl}\nmodels: {decoder: tiny-decoder, encoder: tiny-encoder}\n"
        "train: {max_steps: 2}\nentrants: [zero_shot, linear_probe]\n"
    )
    return str(path)


def test_tournament_promote_lineage(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("promote") == 2
    assert "luthier tournament TASK.yaml" in capsys.readouterr().err
    assert run("tournament", task) == 0
    capsys.readouterr()
    assert run("promote", "--as", "desk", "--entrant", "linear_probe") == 0
    said = capsys.readouterr()
    assert "desk is tiny-encoder-linear_probe" in said.out
    assert "held-out examples of sorting" in said.out
    assert "luthier serve desk" in said.err
    assert run("promote", "--as", "desk", "--entrant", "zero_shot") == 2
    assert "--replace" in capsys.readouterr().err
    assert run("promote", "--as", "desk", "--entrant", "zero_shot", "--replace", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["kind"], record["meta"]["target"]) == ("endpoint", "tiny-decoder")
    assert run("lineage", "desk") == 0
    assert "sorting" in capsys.readouterr().out
    assert run("promote", "--entrant", "zreo_shot") == 2
    assert "Did you mean 'zero_shot'" in capsys.readouterr().err
