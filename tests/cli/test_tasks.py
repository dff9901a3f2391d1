from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        main(list(arguments))
    return int(raised.value.code or 0)


def test_the_list_says_kind_shots_scorers_data_and_licence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks") == 0
    said = capsys.readouterr()
    lines = {line.split()[0]: line for line in said.out.splitlines() if line.split()}
    assert all(word in lines["mmlu"] for word in ("choice", "5", "multiple_choice", "hub:cais/mmlu", "MIT"))
    assert "none needed" in lines["needle"] and "likelihood" in lines["wikitext"]
    assert "luthier tasks show NAME" in said.err
    assert "own" not in lines


def test_the_list_as_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks", "--json") == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["gsm8k"]["scorers"] == ["regex as strict_match", "regex as flexible_extract"]
    assert found["arc"]["matches"] == "arc_easy, arc_challenge"


def test_one_benchmark_and_its_first_question_to_the_letter(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = rows.write(tmp_path, "boolq")
    assert run("tasks", "show", "boolq", f"data={folder}", "shots=0") == 0
    said = capsys.readouterr().out
    assert said.startswith("BoolQ: yes-or-no questions")
    assert "hub:aps/super_glue" in said and "CC BY-SA 3.0" in said and "worked examples before each question" in said
    assert "---\nBoat 0 is made of wood.\nQuestion: is boat 0 made of wood?\nAnswer:\n---" in said
    assert "choices: [' no', ' yes']" in said and "right: [' no']" in said


def test_without_data_there_is_no_question_and_needle_needs_none(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tasks", "show", "mmlu") == 0
    assert "---" not in capsys.readouterr().out
    assert run("tasks", "show", "needle", "lengths=[30]", "repeats=1") == 0
    said = capsys.readouterr().out
    assert "A special magic number is hidden" in said and "target: '" in said


def test_json_holds_the_question_too(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = rows.write(tmp_path, "winogrande")
    assert run("tasks", "show", "winogrande", f"data={folder}", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["example"]["prompt"][1].endswith("because Bea") and told["example"]["choices"] == [" was hungry."] * 2


def test_what_is_wrong_is_named(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks", "show", "hellasweg") == 2
    assert "Did you mean 'hellaswag'" in capsys.readouterr().err
    assert run("tasks", "show", "boolq", "shots=1") == 2
    assert "boolq needs data" in capsys.readouterr().err
    (tmp_path / "v.jsonl").write_text('{"question": "q", "passage": "p", "label": 2}\n')
    assert run("tasks", "show", "boolq", f"data={tmp_path}/v.jsonl") == 2
    assert "v.jsonl:1: label must be one of false, true" in capsys.readouterr().err
