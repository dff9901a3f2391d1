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
def runs(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Two evaluations of one task: asked plainly, and with worked examples."""
    rows = [{"text": f"row {i} about {LABELS[i % 2]}", "label": LABELS[(i + i // 30) % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "task.yaml"
    path.write_text("name: sorting\ndata: {path: rows.jsonl}\nscorers: [accuracy]\n")
    made = []
    for options in ((), ("--strategy", "few_shot", "--option", "shots=4")):
        assert run("eval", "fake", str(path), *options, "--json") == 0
        made.append(json.loads(capsys.readouterr().out)["run"])
    return made[0], made[1]


def test_it_prints_difference_tests_and_counts(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", *runs) == 0
    said = capsys.readouterr().out
    for text in (
        "accuracy on the same 10 examples",
        "difference",
        "paired bootstrap",
        "permutation",
        "McNemar",
        "better in",
    ):
        assert text in said
    assert run("compare", *runs, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["difference"] == pytest.approx(found["values"][0] - found["values"][1])


def test_an_unknown_run_is_named(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", runs[0], "nothing-like-it") == 2
    assert "nothing-like-it" in capsys.readouterr().err
