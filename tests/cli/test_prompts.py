from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from luthier.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        main(list(arguments))
    return int(raised.value.code or 0)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "tickets.yaml"
    file.write_text("about: Tickets [of ours].\ninstruction: 'Which of {labels}?'\ninput: '{input}'\n")
    return file


def test_the_list_names_shipped_and_own_ones(home: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prompts", "add", str(mine)) == 0
    said = capsys.readouterr()
    assert said.out.startswith("tickets@1  sha256:")
    assert "prompt: {template: tickets@1}" in said.err
    assert run("prompts", "list") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert all(word in rows["tickets@1"] for word in ("task", "en", "yours", "Tickets [of ours]."))
    assert all(word in rows["step_by_step_zh@1"] for word in ("text", "zh", "shipped"))
    assert run("prompts", "list", "--json") == 0
    listed = {prompt["name"]: prompt for prompt in json.loads(capsys.readouterr().out)}
    assert listed["tickets"]["instruction"] == "Which of {labels}?"
    assert listed["step_by_step"]["text"] == "Let's think step by step."


def test_what_is_shown_can_be_added_again(home: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prompts", "show", "solve_part") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# solve_part@1  sha256:")
    mine.write_text(shown)
    assert run("prompts", "add", str(mine), "--name", "my-part") == 0
    capsys.readouterr()
    assert run("prompts", "show", "my-part@1", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["text"] == yaml.safe_load(shown)["text"]
    assert again["digest"] in shown
    assert again["source"] == str(home / "prompts" / "my-part@1.yaml")


def test_diff_shows_the_lines_and_says_so_in_its_status(
    home: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("prompts", "add", str(mine))
    mine.write_text(mine.read_text().replace("Which of", "One of"))
    assert run("prompts", "add", str(mine)) == 0
    capsys.readouterr()
    assert run("prompts", "diff", "tickets@1", "tickets") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("--- tickets@1")
    assert lines[1].startswith("+++ tickets@2")
    assert "-instruction: Which of {labels}?" in lines
    assert "+instruction: One of {labels}?" in lines
    assert run("prompts", "diff", "tickets@2", "tickets") == 0
    assert "are the same" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("show", "tickts"), 2, "prompt 'tickts' is not in the catalogue"),
        (("show", "classify@7"), 2, "has no version '7'; it has 1"),
        (("diff", "classify", "nothing-like-it"), 2, "not in the catalogue"),
        (("add", "missing.yaml"), 2, "no such file: missing.yaml"),
    ],
)
def test_errors(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], status: int, message: str
) -> None:
    assert run("prompts", *arguments) == status
    assert message in capsys.readouterr().err


def test_a_bad_file_is_refused_and_a_broken_one_is_warned_of(
    home: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine.write_text("about: x\ninput: 'no place'\n")
    assert run("prompts", "add", str(mine)) == 2
    assert "tickets.yaml: input: must contain {input}" in capsys.readouterr().err
    (home / "prompts").mkdir(parents=True)
    (home / "prompts" / "old@1.yaml").write_text("abot: x\n")
    assert run("prompts", "list") == 0
    said = capsys.readouterr()
    assert "old@1.yaml" in said.err
    assert "classify@1" in said.out
