"""``luthier tournament``."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from luthier.cli import _print, _results, main
from luthier.store.database import open_store
from luthier.store.runs import list_runs

LABELS = ("billing", "refund")
TWO = "entrants=[{name: bare, model: fake}, {name: head, model: 'fake:billing,refund'}]"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.fixture
def task(home: Path, tmp_path: Path) -> str:
    rows = [{"text": f"row {i} about {LABELS[i % 2]}", "label": LABELS[i % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "task.yaml"
    path.write_text("name: sorting\ndata: {path: rows.jsonl}\n")
    return str(path)


def test_plan_board_verdict_and_page(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tournament", task, TWO) == 0
    said = capsys.readouterr()
    assert "bare: as it is on fake" in said.err
    assert "head: evaluate" in said.err
    assert "luthier promote run_" in said.err
    for text in ("bare", "head", "macro F1", "vs leader", "verdict", "Holm"):
        assert text in said.out
    page = next(line.split(": ", 1)[1] for line in said.out.splitlines() if line.startswith("page with plots"))
    assert "<svg" in Path(page.strip()).read_text()


def test_json_is_the_board(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tournament", task, TWO, "--json") == 0
    board = json.loads(capsys.readouterr().out)
    assert {s["name"] for s in board["standings"]} == {"bare", "head"}
    assert board["task"]["command"] == ["luthier", "tournament", task, TWO]


def test_a_failed_entrant_is_told_and_decides_the_exit_code(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    three = TWO[:-1] + ", {name: lost, model: 'fake:a,b'}]"
    assert run("tournament", task, three) == 0
    assert "lost failed: fake:a,b answers with other labels" in capsys.readouterr().out
    assert run("tournament", task, three, "--only", "lost", "--only", "bare") == 1
    assert "Only bare on fake" in capsys.readouterr().out
    assert run("tournament", task, three, "--only", "bare") == 0, "all that were asked for"


def test_bad_input(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tournament", task, TWO, "--only", "bear") == 2
    assert "Did you mean 'bare'" in capsys.readouterr().err
    assert run("tournament", task) == 2
    assert "luthier pull smollm2-135m" in capsys.readouterr().err
    assert run("tournament", task, "entrants=[loar]") == 2
    assert "Did you mean 'lora'" in capsys.readouterr().err
    assert list_runs(open_store()) == []


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_the_board_fits_the_terminal(
    task: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from luthier.tournament.tournament import tournament

    board = tournament(task, [TWO])
    drawn = io.StringIO()
    monkeypatch.setattr(_print, "out", lambda: Console(file=drawn, width=width, highlight=False))
    _results.show_board(board)
    lines = drawn.getvalue().splitlines()
    table = [line for line in lines[: lines.index(next(x for x in lines if "verdict" in x))] if line.strip()]
    assert all(len(line) <= width for line in table)
    names = [line for line in table if "bare" in line or "head" in line]
    assert len(names) == 2, "no row is folded"
    assert all("1.00 [" in line and ", 1.00]" in line for line in names)
    assert ("memory" in table[1]) == (width >= 80)
    assert ("artifact" in table[1]) == (width >= 160)


def test_bars() -> None:
    def drawn(value: float, low: float, high: float) -> str:
        return _results.bar(value, low, high, "blue", 10).plain

    assert drawn(0.55, 0.3, 0.8) == "━━━──╋──··"
    assert drawn(1.0, 1.0, 1.0) == "━━━━━━━━━━"
    assert drawn(0.0, 0.0, 0.0) == "╋·········"
    assert len(drawn(-1.0, -2.0, 3.0)) == 10


def test_a_plan_says_what_would_be_done_and_does_nothing(
    tiny_encoder: str, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        "models.encoder=tiny-encoder",
        "entrants=[{name: bare, model: fake}, {name: probe, method: linear_probe, search: 4}]",
        "seeds=3",
        "budget={seconds: 60}",
    ]
    assert run("tournament", task, *overrides, "--plan") == 0
    said = capsys.readouterr()
    assert "probe: linear_probe on tiny-encoder  serving: torch swap, llamacpp no" in said.err
    assert "probe: 6 trainings, about" in said.out
    assert "trains 66 parameters" in said.out
    assert "no earlier run to compare a prediction with" in said.out
    assert run("tournament", task, *overrides, "--plan", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [p["trainings"] for p in plan] == [0, 6]
    assert plan[1]["seeds"] == [0, 1, 2]
    assert plan[1]["serving"] == {"torch": "swap", "llamacpp": "no"}
    assert plan[1]["predicted"]["peak_mb"] > 0
    assert list_runs(open_store()) == []


def test_too_little_memory_is_warned_of(
    tiny_encoder: str, task: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.training.memory.free_mb", lambda device=None: 0.001)
    assert run("tournament", task, "models.encoder=tiny-encoder", "entrants=[linear_probe]", "--plan") == 0
    assert "linear_probe may need" in capsys.readouterr().err


def test_prices_are_shown_where_they_are_known(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tournament", task, TWO, "machine={per_hour: 36}") == 0
    assert "1,000 requests" in capsys.readouterr().out
