from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import DataError, InputError, TrainingError
from luthier.core.run import no_progress
from luthier.models.weights import read_tensors
from luthier.store.artifacts import path_of
from luthier.store.database import Store, open_store
from luthier.store.models import find, remove
from luthier.store.runs import list_runs
from luthier.tasks.own import read_config, read_task
from luthier.tournament.schedule import Workers, jobs_of, side_by_side
from luthier.tournament.tournament import tournament
from luthier.tournament.trainer import InProcess, nobody
from luthier.training.interrupt import Halt

LABELS = ("billing", "refund")


@pytest.fixture
def store(home: Path) -> Store:
    return open_store()


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = [{"text": f"row {i} is about {LABELS[i % 2]}", "label": LABELS[i % 2]} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "task.yaml"
    path.write_text("name: sorting\ndata: {path: rows.jsonl}\nmodels: {encoder: tiny-encoder}\n")
    return path


@pytest.mark.parametrize(
    ("asked", "cores", "trainings", "expected"),
    [
        ("auto", 1, 5, 1),
        ("auto", 2, 5, 1),
        ("auto", 4, 5, 1),
        ("auto", 8, 5, 2),
        ("auto", 64, 5, 5),
        (2, 2, 5, 2),
        (4, 8, 3, 3),
        (4, 8, 1, 1),
    ],
)
def test_how_many_at_once(asked: int | str, cores: int, trainings: int, expected: int) -> None:
    assert jobs_of(asked, cores, trainings) == expected


def test_more_jobs_than_cores_are_refused() -> None:
    with pytest.raises(InputError, match="at most the 2 cores"):
        jobs_of(3, 2, 5)


def test_work_is_really_side_by_side() -> None:
    both = threading.Barrier(2, timeout=20)
    done: list[int] = []

    def work(item: int) -> None:
        both.wait()  # passes only when two are in it
        done.append(item)

    side_by_side([1, 2, 3, 4], work, 2, lambda: None)
    assert sorted(done) == [1, 2, 3, 4]


def test_one_at_a_time_stays_in_this_thread() -> None:
    threads: list[Any] = []
    side_by_side([1, 2], lambda item: threads.append(threading.current_thread()), 1, lambda: None)
    assert set(threads) == {threading.main_thread()}


def test_the_first_error_stops_the_rest() -> None:
    stopped = threading.Event()

    def work(item: int) -> None:
        if item == 1:
            raise OSError("full")
        assert stopped.wait(20), "waits to be stopped"

    with pytest.raises(OSError, match="full"):
        side_by_side([1, 2, 3, 4], work, 2, stopped.set)
    assert stopped.is_set()


def workers(store: Store, task: Path, tmp_path: Path, code: str = "") -> Workers:
    config, _ = read_config(task)
    made = Workers(store, config, tmp_path, threads=1)
    if code:
        script = tmp_path / "worker.py"
        script.write_text("import json, os, sys, signal\nsay = lambda x: print(json.dumps(x), flush=True)\n" + code)
        made.command = (sys.executable, str(script))
    return made


def test_the_protocol(store: Store, task: Path, tmp_path: Path) -> None:
    code = """
job = json.load(open(sys.argv[1]))
assert os.environ["OMP_NUM_THREADS"] == "1"
say({"stage": ["train", 0, 2]})
say({"record": {"step": 1}, "share": 0.5})
say({"record": {"step": 2, "validation_loss": 0.5}, "share": 1.0})
answer = json.loads(sys.stdin.readline())
say({"done": {"seed": 3, "target": job["config"]["name"], "run": "r", "summary": {"answer": answer}, "made": True}})
"""
    stages: list[Any] = []
    seen: list[Mapping[str, Any]] = []
    done = workers(store, task, tmp_path, code)(
        {"name": "mine"},
        lambda *stage: stages.append(stage),
        lambda record, share: seen.append({**record, "at": share}),
    )
    assert stages == [("train", 0, 2)]
    assert seen == [{"step": 1, "at": 0.5}, {"step": 2, "validation_loss": 0.5, "at": 1.0}]
    assert (done.seed, done.target, done.made, done.summary) == (3, "mine", True, {"answer": {}})


def test_a_watcher_halts_the_worker(store: Store, task: Path, tmp_path: Path) -> None:
    code = """
say({"record": {"validation_loss": 0.5}, "share": 0.5})
said = json.loads(sys.stdin.readline())["halt"]
say({"failed": {"type": "Halt", "message": said, "run": "run_1"}})
"""

    def watch(record: Mapping[str, Any], share: float) -> None:
        raise Halt("worse than the others")

    with pytest.raises(Halt, match="worse than the others") as halted:
        workers(store, task, tmp_path, code)({}, no_progress, watch)
    assert halted.value.run == "run_1"


def test_errors_keep_their_kind_and_a_dead_worker_shows_its_log(store: Store, task: Path, tmp_path: Path) -> None:
    code = 'say({"failed": {"type": "DataError", "message": "a bad row", "hint": "mend it"}})'
    with pytest.raises(DataError, match="a bad row") as error:
        workers(store, task, tmp_path, code)({}, no_progress, nobody)
    assert error.value.hint == "mend it"
    code = 'print("last words", file=sys.stderr, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)'
    with pytest.raises(TrainingError, match=r"exit code -9(.|\n)*last words"):
        workers(store, task, tmp_path, code)({}, no_progress, nobody)


def test_stopping_asks_the_workers_to_end(store: Store, task: Path, tmp_path: Path) -> None:
    code = """
import threading
def end(*_):
    print("ended in order", file=sys.stderr, flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
say({"stage": ["train", 0, 1]})
threading.Event().wait()
"""
    made = workers(store, task, tmp_path, code)
    with pytest.raises(KeyboardInterrupt):
        made({}, lambda *stage: made.stop(), nobody)
    logs = [p.read_text() for p in (tmp_path / "workers").glob("*.log")]
    assert logs == ["ended in order\n"]
    with pytest.raises(KeyboardInterrupt):
        made({}, no_progress, nobody)


PROBES = [
    "entrants=[{name: one, method: linear_probe}, {name: two, method: linear_probe, train: {learning_rate: 0.05}}]",
    "train={max_steps: 4, dtype: fp32}",
]


def test_a_process_gives_what_this_one_gives(tiny_encoder: str, store: Store, task: Path, tmp_path: Path) -> None:
    config = {
        "model": {"base": tiny_encoder},
        "method": {"name": "linear_probe"},
        "train": {"max_steps": 4, "dtype": "fp32", "seed": 5},
    }
    stages: list[str] = []
    records: list[Mapping[str, Any]] = []
    there = workers(store, task, tmp_path)(
        config, lambda stage, *_: stages.append(stage), lambda record, share: records.append({**record, "at": share})
    )
    assert (there.seed, there.made) == (5, True)
    assert "train" in stages
    assert [r["at"] for r in records] == [0.25, 0.5, 0.75, 1.0]
    theirs = read_tensors(path_of(store, find(store, there.target).digest) / "head.safetensors")
    remove(store, there.target)
    here = InProcess(store, read_task(task))(config, no_progress, nobody)
    assert here.target == there.target
    mine = read_tensors(path_of(store, find(store, here.target).digest) / "head.safetensors")
    assert all(torch.equal(mine[name], theirs[name]) for name in mine), "the same weights, bit for bit"


def test_a_killed_worker_is_a_failed_entrant_that_the_next_command_retries(
    tiny_encoder: str, store: Store, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("two processes need two cores")
    real = subprocess.Popen

    def shot(command: Any, *args: Any, **kwargs: Any) -> Any:
        process = real(command, *args, **kwargs)
        if json.loads(Path(command[-1]).read_text())["config"]["train"].get("learning_rate") == 0.05:
            os.kill(process.pid, signal.SIGKILL)
        return process

    monkeypatch.setattr("luthier.tournament.schedule.subprocess.Popen", shot)
    board = tournament(task, [*PROBES, "jobs=2"], store=store)
    failed = board.standing("two")
    assert failed is not None
    assert failed.status == "failed"
    assert "exit code -9" in failed.reason
    monkeypatch.setattr("luthier.tournament.schedule.subprocess.Popen", real)
    mended = tournament(task, [*PROBES, "jobs=2"], store=store)
    assert mended.run == board.run
    assert len(mended.finished) == 2
    assert len(list_runs(store, "tune")) == 2
