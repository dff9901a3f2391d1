"""``luthier show``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.core.engine import EngineInfo
from luthier.core.errors import EngineError
from luthier.core.run import no_progress
from luthier.engines.fake import Config, FakeEngine
from luthier.evaluation.evaluate import evaluate
from luthier.store.database import open_store
from luthier.store.runs import METRICS, MetricsLog, finish, folder, start

LABELS = ("billing", "refund")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def task(home: Path, tmp_path: Path) -> str:
    """Of the 12 examples asked, those from row 30 on carry the other label."""
    rows = [{"text": f"row {i} about {LABELS[i % 2]} [bold]", "label": LABELS[(i + i // 30) % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "task.yaml"
    path.write_text("name: sorting\ndata: {path: rows.jsonl, split: {train: 0.5, validation: 0.2, test: 0.3}}\n")
    return str(path)


def test_an_evaluation_and_its_records(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate("fake", task)
    wrong = [r for r in result.records if r.answer != r.target]
    assert wrong
    assert run("show") == 0
    assert "macro F1" in capsys.readouterr().out
    assert run("show", result.run.id, "--wrong") == 0
    said = capsys.readouterr()
    assert said.out.count("✗") == len(wrong)
    assert "✓" not in said.out
    for record in wrong:
        assert record.input in said.out, "white space and brackets as they are"
        assert record.source in said.out
    assert f"{len(wrong)} of {len(wrong)} wrong answers" in said.err
    assert run("show", result.run.id, "--records", "--limit", "3") == 0
    said = capsys.readouterr()
    assert said.out.count("log-probabilities") == 3
    assert f"3 of {len(result.records)} records" in said.err


def test_json(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate("fake", task)
    assert run("show", "sorting/fake", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["id"] == result.run.id
    assert found["summary"]["scores"]["accuracy"]["value"] == result.scores["accuracy"]["value"]
    assert run("show", "latest", "--records", "--json", "--limit", "2") == 0
    records = json.loads(capsys.readouterr().out)
    assert [r["id"] for r in records] == [r.id for r in result.records[:2]]


def test_an_unfinished_evaluation_says_how_far_it_came(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Dies(FakeEngine):
        @property
        def info(self) -> EngineInfo:
            return self._info

        def score(self, requests, progress=no_progress):  # type: ignore[no-untyped-def]
            raise EngineError("connection lost")

    with pytest.raises(EngineError):
        evaluate(Dies("dies", Config()), task)
    assert run("show") == 0
    said = capsys.readouterr()
    assert "failed, connection lost" in said.out
    assert "0 of 12 examples are answered" in said.out
    assert "goes on where it stopped" in said.err


def test_a_tuning_shows_values_with_their_origins_figures_and_the_curve(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store()
    values = {"model": {"base": "smollm2-135m"}, "train": {"epochs": 3, "seed": 0, "max_steps": None}}
    tuning = start(store, "tune", "my-lora", values, {"model.base": "run.yaml:1", "train.epochs": "command line"})
    with MetricsLog(folder(store, tuning.id) / METRICS) as log:
        for step in range(1, 6):
            log.write({"step": step, "loss": 2.0 / step, "learning_rate": 1e-4})
    finish(store, tuning.id, "done", {"steps": 5, "tokens_per_s": 434.0})
    assert run("show", "my-lora") == 0
    said = capsys.readouterr().out
    for row in (
        ("model.base", "smollm2-135m", "run.yaml:1"),
        ("train.epochs", "3", "command line"),
        ("train.seed", "0", "default"),
    ):
        assert any(all(cell in line for cell in row) for line in said.splitlines()), row
    assert "max_steps" not in said
    assert "training loss" in said
    assert "tokens_per_s" in said


def test_a_tournament_shows_its_board(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run("tournament", task, "entrants=[{name: first, model: fake}, {name: second, model: 'fake:billing,refund'}]")
        == 0
    )
    capsys.readouterr()
    assert run("show", "latest") == 0
    said = capsys.readouterr().out
    assert "verdict" in said
    assert "board.html" in said


def test_bad_input(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show") == 2
    assert "there is no run yet" in capsys.readouterr().err
    store = open_store()
    tuning = start(store, "tune", "my-lora", {}, {})
    assert run("show", tuning.id, "--wrong") == 2
    assert "--records and --wrong are for eval runs" in capsys.readouterr().err
    assert run("show", "my-loar") == 2
    assert "Did you mean 'my-lora'" in capsys.readouterr().err
