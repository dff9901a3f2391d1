"""``luthier robustness``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["robustness", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def task(home: Path, tmp_path: Path) -> str:
    rows = [{"text": f"Please help, row {i} about {'ab'[i % 2]}x.", "label": f"{'ab'[i % 2]}x"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "task.yaml"
    path.write_text("name: sorting\ndata: {path: rows.jsonl}\n")
    return str(path)


def test_it_prints_every_variant_the_spread_and_where_the_picture_is(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fake", task, "--png", str(tmp_path / "r.png")) == 0
    said = capsys.readouterr().out
    for text in ("original", "upper_case", "typos", "prompt:classify", "spread", "worst:", "flips", "robustness.png"):
        assert text in said
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_json_and_a_choice_of_variants(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fake", task, "--variant", "typos", "--no-prompts", "--limit", "5", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [v["name"] for v in found["variants"]] == ["original", "typos"]
    assert found["examples"] == 5 and found["spread"] >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--variant", "typo"], "Did you mean 'typos'"), (["--prompt", "clasify"], "Did you mean 'classify'")],
)
def test_bad_input(task: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fake", task, *arguments) == 2
    assert message in capsys.readouterr().err
