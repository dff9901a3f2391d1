"""``luthier continual``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.test_tournament import run
from tests.tournament.test_stream import MORE
from tests.training.test_tune import write_tickets


@pytest.fixture
def stream(tiny_encoder: str, tmp_path: Path) -> str:
    write_tickets(tmp_path / "autumn.jsonl", 16)
    write_tickets(tmp_path / "winter.jsonl", 16, MORE)
    path = tmp_path / "stream.yaml"
    path.write_text(
        f"name: support\nmodel: {tiny_encoder}\nstream: [autumn.jsonl, winter.jsonl]\nmethod: linear_probe\n"
        "train: {epochs: 1, dtype: fp32, device: cpu}\n"
    )
    return str(path)


def test_table_figures_and_json(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("continual", stream, "replay=0.5") == 0
    said = capsys.readouterr()
    assert "support-1-autumn" in said.err and "replayed" in said.err
    for text in ("after autumn", "after winter", "macro_f1 on the test rows", "backward transfer", "forgetting", "luthier serve support-2-winter"):  # fmt: skip
        assert text in said.out
    assert Path(next(line for line in said.out.splitlines() if line.startswith("picture")).split()[-1]).exists()
    assert run("continual", stream, "replay=0.5", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [len(row) for row in report["scores"]] == [1, 2] and report["model"] == "support-2-winter"


def test_bad_input_is_one_message(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("continual", stream, "replay=2") == 2
    said = capsys.readouterr().err
    assert "replay.share" in said and "Traceback" not in said
    assert run("continual", "nowhere.yaml") == 2
