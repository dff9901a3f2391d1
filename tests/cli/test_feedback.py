from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.core.model import ModelRecord
from luthier.core.trace import Trace
from luthier.store.database import open_store
from luthier.store.feedback import list_feedback
from luthier.store.models import register
from luthier.store.traces import record_trace


@pytest.fixture
def trace(home: Path) -> str:
    store = open_store()
    register(store, ModelRecord("desk", "endpoint", "encoder", "e" * 64, meta={"labels": ["billing", "refund"]}))
    record_trace(store, Trace("trace_1", "2026-01-01T00:00:00.000Z", "desk", "chat", answer="billing"))
    return "trace_1"


def run(*arguments: str) -> int:
    try:
        main(["feedback", *arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_feedback_is_recorded(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(trace, "--rating", "-1", "--label", "refund", "--comment", "it says pay back") == 0
    assert 'label="refund"' in capsys.readouterr().out
    ((_, given),) = list_feedback(open_store(), "desk")
    assert (given.trace_id, given.rating, given.label, given.comment) == (trace, -1, "refund", "it says pay back")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trace_1"], "at least one"),
        (["trace_2", "--rating", "1"], "trace_2"),
        (["trace_1", "--rating", "3"], "rating"),
        (["trace_1", "--label", "refunds"], "billing, refund"),
        (["trace_1", "--corrected", " "], "corrected"),
    ],
)
def test_what_is_refused(trace: str, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert run(*arguments) == 2
    assert words in capsys.readouterr().err
    assert list_feedback(open_store()) == []


def test_what_was_done_and_what_was_better(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ({"role": "user", "content": "q"},)
    for name in ("one", "two"):
        record_trace(open_store(), Trace(name, "2026-01-01T00:00:00.000Z", "m", "chat", asked, name))
    assert run("one", "--over", "two", "--user", "ann") == 0
    assert run("--event", "copied", "two") == 0
    capsys.readouterr()
    assert run("list") == 0
    shown = capsys.readouterr().out
    assert "better than two; by ann" in shown
    assert "copied" not in shown
    assert run("list", "--implicit", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(said["trace_id"], said["kind"], said["source"]) for said in listed] == [
        ("two", "implicit", "cli"), ("one", "explicit", "cli"),
    ]  # fmt: skip


def test_inferring(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ({"role": "user", "content": "where is my parcel"},)
    for number in range(3):
        trace = Trace(f"t{number}", f"2026-01-01T00:0{number}:00.000Z", "m", "chat", asked, f"a{number}", session="s")
        record_trace(open_store(), trace)
    assert run("infer", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"regenerated": 2}
    assert run("infer") == 0
    assert "Nothing new" in capsys.readouterr().err
