"""``luthier power``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.evaluation.evaluate import evaluate
from luthier.evaluation.power import Design, paired_difference, paired_examples


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["power", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def task(home: Path, tmp_path: Path) -> str:
    rows = [{"text": f"row {i} about {'ab'[i % 2]}x", "label": f"{'ab'[(i + i // 7) % 2]}x"} for i in range(80)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "task.yaml"
    path.write_text("data: {path: rows.jsonl, split: {train: 0.2, validation: 0.1, test: 0.7}}\nscorers: [accuracy]\n")
    return str(path)


def test_what_a_test_set_shows(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert run("--n", "280") == 0
    said = capsys.readouterr().out
    assert "smallest difference that 280 examples show" in said and "20% discordant" in said and "power 80%" in said
    assert f"{paired_difference(280, 0.2):.3f}" in said
    assert run("--n", "280", "--discordance", "0.15", "--entrants", "5", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["paired"] == [
        {"discordance": 0.15, "difference": paired_difference(280, 0.15, Design(comparisons=10))}
    ]


def test_what_a_wish_needs(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert run("--difference", "0.03") == 0
    said = capsys.readouterr().out
    assert f"{paired_examples(0.03, 0.1):,}" in said and "difference of 0.03" in said
    assert run("--difference", "0.3", "--accuracy", "0.9", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [p["discordance"] for p in found["paired"]] == [0.3]
    assert found["one_score"][0]["examples"] == 4
    assert run("--n", "20") == 0
    assert "none" in capsys.readouterr().out, "twenty examples of which one is discordant show nothing"


def test_what_two_runs_show(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    one = evaluate("fake", task)
    other = evaluate("fake", task, strategy={"name": "few_shot", "shots": 2})
    assert run("--run", one.run.id, "--run", other.run.id, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    right = [[r.scores["accuracy"] for r in result.records] for result in (one, other)]
    apart = sum(a != b for a, b in zip(*right, strict=True)) / len(right[0])
    assert found["discordance"] == pytest.approx(apart)
    assert found["difference"] == pytest.approx(one.score - other.score)
    assert found["examples"] == 56
    assert run("--run", one.run.id, "--run", other.run.id) == 0
    assert "On 56 examples the two differ by" in capsys.readouterr().out
    assert run("--run", one.run.id) == 0
    assert "56 examples show" in capsys.readouterr().out


def test_runs_that_cannot_be_paired_are_refused(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = evaluate("fake", task).run.id, evaluate("fake", task, limit=20).run.id
    assert run("--run", one, "--run", other) == 2
    assert "did not answer the same examples" in capsys.readouterr().err
    assert run("--run", one, "--run", one, "--run", one) == 2
    assert "once or twice; got 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --n, --difference and --run; got none"),
        (["--n", "5", "--difference", "0.1"], "got --n and --difference"),
        (["--difference", "2"], "difference must be above 0 and below 1; got 2"),
        (["--n", "50", "--power", "1"], "power must be above 0 and below 1"),
        (["--difference", "0.2", "--discordance", "0.1"], "discordance must be between the difference"),
    ],
)
def test_bad_wishes(arguments: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
