from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.core.model import ModelRecord
from luthier.core.trace import Trace
from luthier.store import runs
from luthier.store.database import open_store
from luthier.store.feedback import record_feedback
from luthier.store.lineage import Node, record_edge
from luthier.store.models import register
from luthier.store.traces import list_traces, record_trace, record_traces


@pytest.fixture(autouse=True)
def traces(home: Path) -> None:
    asked = ({"role": "system", "content": "s"}, {"role": "user", "content": "where is [my] parcel? " * 9})
    record_traces(
        open_store(),
        [
            Trace(f"t{n}", f"2026-01-01T00:00:0{n}.000Z", f"m{n % 2}", "chat", asked, f"answer {n}", latency_s=0.5)
            for n in range(5)
        ]
        + [Trace("t5", "2026-01-01T00:00:05.000Z", "m1", "chat", asked, error="the engine failed")],
    )


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["traces", *arguments])
    assert not ended.value.code
    return capsys.readouterr().out


def test_the_newest_first_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "--limit", "3").splitlines()
    first = [line.split()[0] for line in lines if line.strip()]
    assert first[-3:] == ["t5", "t4", "t3"]
    assert "where is [my] parcel?" in "\n".join(lines)
    assert "the engine failed" in "\n".join(lines)


def test_of_one_model_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "--model", "m0", "--json"))
    assert [each["id"] for each in found] == ["t4", "t2", "t0"]
    assert found[0]["messages"][0] == {"role": "system", "content": "s"}


def test_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "--model", "unheard-of") == ""
    assert json.loads(output(capsys, "--model", "unheard-of", "--json")) == []


@pytest.fixture
def rich() -> None:
    """Traces of a model with a history, timings, decisions and feedback."""
    store = open_store()
    run = runs.start(store, "tune", "first", {}, {})
    register(store, ModelRecord("lora", "adapter", "decoder", "d1", base="base", run_id=run.id))
    record_edge(store, Node("dataset", "ab" * 32, "tickets"), "train", Node("run", run.id))
    details = {
        "attempts": [
            {
                "model": "other",
                "began_s": 0.0,
                "waited_s": 0.1,
                "took_s": 0.5,
                "at_s": 0.5,
                "error": "the engine is down",
            },
            {"model": "lora", "began_s": 0.5, "waited_s": 0.0, "took_s": 1.5, "at_s": 2.0, "error": ""},
        ],
        "guardrails": [{"name": "pii", "action": "mask", "at_s": 0.0}],
        "tool_calls": [{"id": "c", "name": "track", "arguments": '{"id": 7}'}],
    }
    asked = ({"role": "user", "content": [{"type": "text", "text": "where is parcel [7]?"}]},)
    record_trace(
        store,
        Trace(
            "trace_rich", "2026-01-02T10:00:00.000Z", "lora", "chat", asked, "on its way", {"temperature": 0.5},
            model_digest="d1", prompt_tokens=5, completion_tokens=31, first_token_s=0.5, latency_s=2.0, cost=0.25,
            finish_reason="tool_calls", tenant="acme", session="s1", route="desk", details=details,
        ),
    )  # fmt: skip
    record_feedback(store, "trace_rich", rating=-1, corrected="lost", said_by="ann")
    record_feedback(store, "trace_rich", event="copied", source="client")


def test_one_trace_as_a_page(rich: None, capsys: pytest.CaptureFixture[str]) -> None:
    page = output(capsys, "show", "trace_ri")
    for said in (
        "trace_rich  2026-01-02 10:00:00 UTC  chat  lora d1", "tenant acme", "session s1", "route desk", "temperature=0.5",
        "user  where is parcel [7]?", "answer  on its way", 'track({"id": 7})',
        "first token 0.50 s, in all 2.00 s; 5 tokens in, 31 out, 20.0 tokens/s, cost 0.250000, ended with tool_calls",
        "guardrails  name: pii, action: mask", "bad, corrected: lost; by ann", "copied (reported, not said)",
        "dataset tickets",
    ):  # fmt: skip
        assert said in page, said
    bars = {line.split("  ")[0].strip(): line for line in page.splitlines() if "█" in line}
    assert bars["other failed"].count("·") == 2  # 0.1 of 2 seconds in 48 characters
    assert bars["lora"].count("█") == 36
    same = json.loads(output(capsys, "show", "latest", "--json"))
    assert (same["id"], [said["rating"] for said in same["feedback"]]) == ("trace_rich", [-1, None])


def test_a_trace_that_is_not_there_or_not_clear(capsys: pytest.CaptureFixture[str]) -> None:
    for which, said in (("t", "the start of several traces: t0, t1"), ("none", "'none' is not known")):
        with pytest.raises(SystemExit) as ended:
            main(["traces", "show", which])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_list_with_filters(rich: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "trace_rich" in output(capsys, "list", "--tenant", "acme", "--min-latency-s", "1", "--feedback", "bad")
    assert "trace_rich" not in output(capsys, "list", "--errors")
    assert [t["id"] for t in json.loads(output(capsys, "list", "--guardrail", "pii", "--json"))] == ["trace_rich"]
    with pytest.raises(SystemExit) as ended:
        main(["traces", "list", "--since", "someday"])
    assert ended.value.code == 2


def test_the_last_ones_oldest_first(rich: None, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "tail", "-n", "2").splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["t5", "trace_rich"]
    assert "where is parcel [7]? -> on its way" in lines[1]
    assert [json.loads(line)["id"] for line in output(capsys, "tail", "--json").splitlines()][-1] == "trace_rich"


def test_following_shows_what_comes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt
        record_trace(open_store(), Trace(f"new{len(naps)}", "2026-01-03", "m1", "chat"))

    monkeypatch.setattr("time.sleep", nap)
    shown = output(capsys, "tail", "-f", "-n", "0", "--model", "m1").splitlines()
    assert [line.rsplit(" ", 1)[1] for line in shown] == ["new1", "new2"]
    assert naps == [0.5] * 3


def test_figures_by_model_and_day(rich: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    stats = json.loads(output(capsys, "stats", "--json"))
    assert [(s["model"], s["day"], s["requests"], s["errors"]) for s in stats] == [
        ("lora", "2026-01-02", 1, 0), ("m0", "2026-01-01", 3, 0), ("m1", "2026-01-01", 3, 1),
    ]  # fmt: skip
    assert stats[0]["latency_s"] == {"p50": 2.0, "p95": 2.0, "p99": 2.0}
    assert stats[0]["tokens_per_s"] == pytest.approx(20.0)
    drawn = output(capsys, "stats", "--by", "route", "--png", str(tmp_path / "traffic.png"))
    assert "desk" in drawn
    assert "seconds an answer" in drawn
    assert (tmp_path / "traffic.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit) as ended:
        main(["traces", "stats", "--by", "colour"])
    assert ended.value.code == 2


def test_deleting(rich: None, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--days", "1"]):  # nothing said; nobody there to ask
        with pytest.raises(SystemExit) as ended:
            main(["traces", "purge", *arguments])
        assert ended.value.code == 2
    capsys.readouterr()
    output(capsys, "purge", "--model", "m0", "--yes")
    assert len(list_traces(open_store())) == 4
    output(capsys, "purge", "--days", "1", "--yes")
    assert [t.id for t in list_traces(open_store())] == ["trace_rich"]
    output(capsys, "purge", "--days", "1", "--all", "--yes")
    assert list_traces(open_store()) == []
