"""``luthier arena``."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.store.battles import list_battles
from luthier.store.database import open_store


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["arena", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def prompts(home: Path, tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}?"}) + "\n" for i in range(4)))
    return str(path)


def test_votes_are_taken_blind_and_shown_as_ratings(
    prompts: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nwhat\nt\nb\nq\n"))
    assert run("play", "fake", "fake:yes,no", "--prompts", prompts, "--voter", "ana") == 0
    said = capsys.readouterr()
    assert "fake" not in said.out.replace("prompt", ""), "no model is named"
    assert "votes kept in arena arena: 3" in said.err and "a or b for the better answer" in said.err
    assert sorted(b.voter for b in list_battles(open_store())) == ["ana"] * 3
    monkeypatch.setattr("sys.stdin", io.StringIO("s\n"))
    assert run("play", "fake", "fake:yes,no", "--prompts", prompts, "--voter", "ana") == 0
    assert "1/1" in capsys.readouterr().out, "only what is left"
    assert run("play", "fake", "fake:yes,no", "--prompts", prompts, "--voter", "ana") == 0
    assert "has seen all 4 pairs" in capsys.readouterr().err
    assert run("show") == 0
    shown = capsys.readouterr().out
    for text in ("3 human votes, 1 skipped", "Bradley-Terry", "TrueSkill", "fake:yes,no", "won against"):
        assert text in shown


def test_prompts_that_are_typed(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it?\n1\nand this?\n2\n\n"))
    assert run("play", "fake", "fake:yes,no", "--voter", "ana", "--arena", "typed") == 0
    found = list_battles(open_store(), "typed")
    assert [b.prompt for b in found] == ["what is it?", "and this?"]
    assert all(b.digest_a and b.shown for b in found)


def test_a_judge_votes_and_goes_on(prompts: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["judge", "fake", "fake:yes,no", prompts, "--judge", "fake:A,B", "--mode", "score", "--arena", "j"]
    assert run(*arguments, "--limit", "3") == 0
    said = capsys.readouterr().out
    assert "3 of 3 pairs judged by fake:A,B in arena j (3 new)" in said
    assert "judge.jsonl" in said and "3 judge votes" in said
    assert run(*arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["new"] == 1


def test_a_judge_is_compared_with_imported_votes(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"id": i, "prompt": f"p{i}", "model_a": "m", "model_b": "n", "response_a": f"x{i}", "response_b": f"y{i}",
         "winner": ("model_a", "model_b", "tie")[i % 3]}
        for i in range(9)
    ]  # fmt: skip
    path = tmp_path / "people.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert run("import", str(path)) == 0
    assert "9 votes, 9 of them new, in arena people" in capsys.readouterr().out
    assert run("judge", "--judge", "fake", "--mode", "score", "--arena", "people") == 0
    assert "Judges against people" in capsys.readouterr().out
    files = [str(tmp_path / "b.html"), str(tmp_path / "b.png")]
    assert run("show", "--arena", "people", "--html", files[0], "--png", files[1], "--ties", "davidson", "--json") == 0
    board = json.loads(capsys.readouterr().out)
    assert board["votes"] == 9 and board["agreement"][0]["n"] == 9
    assert Path(files[0]).read_text().startswith("<!doctype html>")
    assert Path(files[1]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show"], 7, "has no votes"),
        (["show", "--votes", "cats"], 2, "votes must be human or judge; got 'cats'"),
        (["judge", "fake", "nowhere.jsonl", "--judge", "fake"], 2, "two or more models"),
        (["judge", "a", "b", "c.jsonl", "--judge", "fake", "--mode", "think"], 2, "mode must be write or score"),
        (["judge", "--judge", "fake"], 2, "no human votes to judge again"),
        (["play", "fake", "fake"], 2, "two different models"),
        (["import", "nowhere.jsonl"], 2, "nowhere.jsonl"),
        (["import", "x.jsonl", "--source", "me"], 2, "source must be human or judge"),
    ],
)
def test_bad_input_is_an_error_in_words(
    home: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == code
    assert message in capsys.readouterr().err
