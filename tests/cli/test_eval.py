"""``luthier eval``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main

LABELS = ("billing", "refund")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def task(home: Path, tmp_path: Path) -> str:
    rows = [{"text": f"row {i} about {LABELS[i % 2]}", "label": LABELS[(i + i // 30) % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "task.yaml"
    path.write_text("name: sorting\ndata: {path: rows.jsonl}\n")
    return str(path)


def test_it_prints_scores_with_intervals_labels_mistakes_and_where_the_records_are(
    task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("eval", "fake", task) == 0
    said = capsys.readouterr()
    for text in (
        "fake, zero_shot on sorting, test split",
        "macro F1",
        "accuracy",
        "precision",
        "billing",
        "95% interval",
    ):
        assert text in said.out
    assert "commonest mistakes: " in said.out
    assert "single requests: median" in said.out
    assert "luthier show run_" in said.out
    assert "evaluate" in said.err


def test_json_holds_the_same_figures(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("eval", "fake", task, "--split", "train", "--limit", "10", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["examples"] == 10
    assert found["split"] == "train"
    assert set(found["scores"]["macro_f1"]) == {"value", "low", "high", "level"}


def test_a_strategy_with_options(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("eval", "fake", task, "--strategy", "few_shot", "--option", "shots=4", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert run("show", found["run"], "--json") == 0
    strategy = json.loads(capsys.readouterr().out)["config"]["values"]["strategy"]
    assert strategy["name"] == "few_shot"
    assert len(strategy["config"]["examples"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--option", "shots=4"], "--option belongs to a strategy"),
        (["--strategy", "few_shot", "--option", "shot=4"], "Did you mean 'shots'"),
        (["--strategy", "few_shot", "--option", "shots"], "expected key=value"),
        (["--split", "dev"], "split must be train, validation or test; got 'dev'"),
        (["--engine", "vlm"], "engine"),
        (["--engine-option", "latency=1"], "latency_s"),
    ],
)
def test_bad_input_ends_with_code_two(
    task: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("eval", "fake", task, *arguments) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_model_or_file(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("eval", "smollm2-135m", task) == 2
    assert "luthier pull smollm2-135m" in capsys.readouterr().err
    assert run("eval", "fake", "nowhere.yaml") == 2
    assert "no such file: nowhere.yaml" in capsys.readouterr().err
