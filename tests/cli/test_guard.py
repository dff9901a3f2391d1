from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.store.audit import audit
from luthier.store.database import open_store


def run(*arguments: str) -> int:
    try:
        main(["guard", *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_a_text_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "I am ada@example.org") == 0
    out = capsys.readouterr().out
    assert "EMAIL" in out and "the model sees: I am [EMAIL_1]" in out and out.rstrip().endswith("action: mask")
    assert run("check", "hello") == 0
    assert capsys.readouterr().out.strip() == "action: pass"


def test_rows_are_checked_against_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(
        "guardrails:\n  - {name: topics, deny: {weapons: {words: [gun]}}, action: flag}\n  - name: pii\n", "utf-8"
    )
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "mail ada@example.org"}]
    lines = [{"text": "a gun"}, {"messages": turns}, {"text": "nothing"}]
    rows.write_text("\n".join(map(json.dumps, lines)) + "\n", "utf-8")
    assert run("check", str(rows), "--config", str(config)) == 0
    assert capsys.readouterr().out.rstrip().endswith("3 rows: flag 1, mask 1, pass 1")
    assert run("check", str(rows), "-c", str(config), "--name", "topics", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["action"] for row in said] == ["flag", "pass", "pass"]
    assert said[0]["findings"][0]["kind"] == "weapons"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("check", "x", "--on", "both"), "--on must be input or output"),
        (("check", "x", "--name", "pi"), "guardrail 'pi' is not known. Did you mean 'pii'"),
        (("check", "none.jsonl"), "cannot read none.jsonl"),
        (("check", "x", "--config", "none.yaml"), "no such file"),
    ],
)
def test_bad_input_is_said(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert words in capsys.readouterr().err


def test_broken_rows_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    for line, words in (
        ("{", "rows.jsonl:1: not JSON"),
        ('{"txt": 1}', 'rows.jsonl:1: a row needs "text" or "messages"'),
        ("", "has no rows"),
    ):
        rows.write_text(line + "\n", "utf-8")
        assert run("check", str(rows)) == 2
        assert words in capsys.readouterr().err


def test_guardrails_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--json") == 0
    said = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert said["pii"]["actions"][0] == "mask" and said["schema"]["on"] == ["output"] and len(said) >= 10


def test_handovers_are_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store()
    audit(
        store,
        "guardrails",
        "guardrail.hand_over",
        "trace_7",
        {"guardrail": "topics", "reasons": ["refund"]},
        tenant="acme",
    )
    audit(store, "user:me", "key.create", "key_1")
    assert run("handovers") == 0
    out = capsys.readouterr().out
    assert "trace_7" in out and "key_1" not in out
    assert run("handovers", "--tenant", "other", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
