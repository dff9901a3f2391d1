"""The command: what it prints, its exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.cli._training import display
from luthier.data import read
from luthier.store.database import open_store
from luthier.store.runs import list_runs
from luthier.training.loop import _Loop
from luthier.training.tune import tune

ROWS = [
    {"text": f"{word} number {i}", "label": label} for i in range(8) for word, label in (("pay", "a"), ("box", "b"))
]


@pytest.fixture
def run_file(tmp_path: Path, tiny_decoder: str) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {tiny_decoder}\ndata: {{path: rows.jsonl}}\nmethod: lora\n"
        "name: router\ntrain: {epochs: 2, batch_size: 8, dtype: fp32, device: cpu}\n"
    )
    return path


def luthier(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["tune", *arguments])
    return int(caught.value.code or 0)


def test_train_then_again(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert luthier(str(run_file), "method.rank=4") == 0
    said = capsys.readouterr()
    assert "router = lora(tiny-decoder), objective classify" in said.err
    assert "torch: hot-swapped on its base" in said.err
    assert "loss" in said.err and "tokens/s" in said.err and "peak" in said.err
    assert "training loss (line)" in said.out
    assert "validation_accuracy" in said.out and "luthier chat router" in said.out
    assert luthier(str(run_file), "method.rank=4", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["reused"] is True and again["model"] == "router" and again["steps"] > 0
    assert luthier(str(run_file), "method.rank=4") == 0
    assert "was trained before" in capsys.readouterr().out


def test_errors_have_their_exit_codes(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert luthier(str(tmp_path / "nothing.yaml")) == 2
    assert luthier(str(run_file), "train.epohcs=2") == 2
    said = capsys.readouterr().err
    assert "no such file" in said and "Did you mean 'epochs'" in said and "Traceback" not in said


def test_ctrl_c_exits_130_says_how_to_go_on_and_the_same_command_does(
    run_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = _Loop._step

    def interrupted(self: _Loop) -> Mapping[str, Any]:
        if self.position.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(_Loop, "_step", interrupted)
        assert luthier(str(run_file)) == 130
    assert "run the same command again" in capsys.readouterr().err
    [run] = list_runs(open_store())
    assert run.status == "interrupted"
    assert luthier(str(run_file)) == 0
    assert "goes on at step 2" in capsys.readouterr().err
    assert [r.id for r in list_runs(open_store())] == [run.id]


def test_a_plan_predicts_and_does_nothing(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert luthier(str(run_file), "--plan") == 0
    said = capsys.readouterr().out
    assert "router = lora(tiny-decoder), objective classify" in said
    assert "time     about" in said
    assert "memory   peak about" in said
    assert "earlier  no earlier run to compare a prediction with" in said
    assert "torch: hot-swapped on its base" in said
    assert luthier(str(run_file), "--plan", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["predicted"]["steps"] > 0
    assert plan["predicted"]["parts"]["optimizer"] > 0
    assert list_runs(open_store()) == []


def test_a_plan_counts_the_chosen_optimizer_and_wrong_ones_are_refused(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = {}
    for name in ("adamw", "sgd"):
        assert luthier(str(run_file), "--plan", "--json", f"train.optimizer={name}") == 0
        taken[name] = json.loads(capsys.readouterr().out)["predicted"]["raw_mb"]
    assert taken["sgd"] < taken["adamw"]
    assert luthier(str(run_file), "--plan", "train.optimizer=lion") == 0
    assert "tokens, by lion" in " ".join(capsys.readouterr().out.split())
    assert luthier(str(run_file), "--plan", "train.optimizer=addamw") != 0
    assert "Did you mean 'adamw'" in " ".join(capsys.readouterr().err.split())
    assert luthier(str(run_file), "--plan", "train.optimizer={name: lion, beta3: 0.5}") == 2
    assert "unknown key 'beta3'" in " ".join(capsys.readouterr().err.split())
    assert luthier(str(run_file), "--plan", "train.power=2") == 2
    assert "power is for schedule polynomial" in " ".join(capsys.readouterr().err.split())


def test_several_sources_and_tasks_are_told(
    tmp_path: Path, tiny_encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: desk\nmodel: {tiny_encoder}\nmethod: lora\n"
        "data: {sources: [{name: one, path: rows.jsonl}, {name: two, path: rows.jsonl, limit: 8}]}\n"
        "objective: {name: multitask, tasks: {one: classify, two: classify}}\n"
        "train: {epochs: 1, batch_size: 8, dtype: fp32, device: cpu}\n"
    )
    assert luthier(str(path), "--plan") == 0
    assert "desk = lora(tiny-encoder), objective multitask" in capsys.readouterr().out
    assert luthier(str(path), "data.sampling=equal", "data.epoch_rows=8") == 0
    said = capsys.readouterr()
    assert "one 12 rows, 50.0%; two 6 rows, 50.0%" in " ".join(said.err.split())
    assert "validation_accuracy/two" in said.out
    assert "desk-one, desk-two" in said.out
    assert "luthier chat desk-one" in said.out
    assert luthier(str(path), "name=other", "data.sources.7.limit=3") == 2


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_comes_before_the_training_has_bars_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    clock = iter(range(100))
    monkeypatch.setattr("luthier.cli._training.time.monotonic", lambda: float(next(clock)))
    with display() as shown:
        shown.progress("load", 0, 1)
        shown.progress("read", 1000, 0)
        shown.progress("read", 3000, 0)
        shown.bars.refresh()
        assert [task.description for task in shown.bars.tasks] == ["read"] and "2,000/s" in screen.getvalue()
        shown.progress("read", 3500, 3500)
        shown.progress("tokenise", 500, 3500)
        shown.progress("train", 1, 9)
        shown.bars.refresh()
        assert [task.description for task in shown.bars.tasks] == ["tokenise", "train"]
        assert "500/3500" in screen.getvalue() and "load" not in screen.getvalue()
        shown.progress("tokenise", 3500, 3500)
        shown.progress("reference", 40, 40)  # done at once: nothing to show
        assert [task.description for task in shown.bars.tasks] == ["train"]


def test_into_a_pipe_only_long_stages_say_something(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 100, 6))
    monkeypatch.setattr("luthier.cli._training.time.monotonic", lambda: float(next(clock)))
    with display() as shown:
        shown.progress("read", 1000, 0)
        shown.progress("read", 1200, 1200)
        for done in range(0, 401, 100):
            shown.progress("teacher", done, 400)
    assert capsys.readouterr().err.splitlines() == ["teacher: 200 of 400  17/s", "teacher: 400 of 400  17/s"]


def test_reading_long_files_is_told(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_SAID_EVERY", 5)
    said: list[tuple[str, int, int]] = []
    for streaming in (False, True):
        said.clear()
        overrides = ["train.max_steps=1", f"data.streaming={streaming}", "objective=sft", f"name=r{streaming}"]
        tune(run_file, overrides, progress=lambda *told: said.append(told))
        assert [told for told in said if told[0] == "read"] == [
            ("read", 5, 0),
            ("read", 10, 0),
            ("read", 15, 0),
            ("read", 16, 16),
        ]
