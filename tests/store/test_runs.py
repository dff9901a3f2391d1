import json
import os
import subprocess
import sys

import pytest
from sqlalchemy import text

from luthier.core.errors import InputError, NotFoundError, StoreError
from luthier.store import runs
from luthier.store.runs import MetricsLog, read_metrics


def begin(store, name="support", key=""):
    return runs.start(store, "tune", name, {"train": {"epochs": 2}}, {"train.epochs": "run.yaml:3"}, key=key)


def test_a_run_has_a_folder_with_values_origins_and_environment(store):
    run = begin(store, key="k")
    assert (run.status, run.kind, run.name, run.key, run.finished_at) == ("running", "tune", "support", "k", None)
    folder = runs.folder(store, run.id)
    assert json.loads((folder / "config.json").read_text()) == {
        "values": {"train": {"epochs": 2}},
        "origins": {"train.epochs": "run.yaml:3"},
    }
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["pid"] == os.getpid() and environment["packages"]["torch"]
    assert "argv" not in environment and "env" not in environment
    assert runs.find_run(store, run.id) == run


def test_finish_sets_status_summary_and_time(store):
    run = runs.finish(store, begin(store).id, "done", {"loss": 0.5, "bad": float("nan")})
    assert run.status == "done" and run.summary == {"loss": 0.5, "bad": None} and run.finished_at >= run.created_at
    with pytest.raises(NotFoundError):
        runs.finish(store, "run_0", "done", {})
    with pytest.raises(InputError, match="running, done, failed, interrupted"):
        runs.finish(store, run.id, "over", {})
    with pytest.raises(InputError, match="tune, eval, tournament"):
        runs.start(store, "thing", "", {}, {})


def test_runs_are_found_by_id_its_start_name_and_its_start(store):
    first, second = begin(store, "support"), begin(store, "support")
    other = begin(store, "billing_a")
    assert runs.find_run(store, first.id[:-1]).id == first.id
    assert runs.find_run(store, "support").id == second.id, "of one name, the newest"
    assert runs.find_run(store, "bill").id == other.id
    with pytest.raises(InputError, match=f"several.*{second.id}"):
        runs.find_run(store, "run_")
    with pytest.raises(NotFoundError, match="Did you mean 'support'"):
        runs.find_run(store, "suport")
    with pytest.raises(NotFoundError):
        runs.find_run(store, "billing%")
    with pytest.raises(NotFoundError):
        runs.find_run(store, "")


def test_lists_are_newest_first_and_keys_find_equal_work(store):
    made = [begin(store, str(n), key="same" if n < 2 else "") for n in range(3)]
    assert [r.id for r in runs.list_runs(store)] == [r.id for r in sorted(made, key=lambda r: (r.created_at, r.id))][
        ::-1
    ]
    assert len(runs.list_runs(store, limit=2)) == 2
    assert runs.list_runs(store, "eval") == []
    assert {r.id for r in runs.by_key(store, "same")} == {made[0].id, made[1].id}


def test_runs_of_dead_processes_become_interrupted_and_can_be_resumed(store):
    alive = begin(store, "alive")
    code = (
        "from luthier.store.database import open_store\nfrom luthier.store import runs\nimport os, signal\n"
        "print(runs.start(open_store(), 'tune', 'dead', {}, {}).id, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, check=False
    )
    dead = done.stdout.strip()
    assert runs.find_run(store, dead).status == "running"
    assert [r.id for r in runs.recover(store)] == [dead]
    assert runs.find_run(store, dead).status == "interrupted"
    assert runs.find_run(store, alive.id).status == "running"
    assert runs.recover(store) == []
    assert runs.resume(store, dead).status == "running"
    assert runs.recover(store) == [], "it belongs to this process now"


def test_a_reused_process_number_is_not_taken_for_the_run(store):
    run = begin(store)
    path = runs.folder(store, run.id) / "environment.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"pid_started": said["pid_started"] - 100}))
    assert [r.id for r in runs.recover(store)] == [run.id]


def test_a_run_of_another_machine_is_left_alone(store):
    run = begin(store)
    path = runs.folder(store, run.id) / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere", "pid": 999999}))
    assert runs.recover(store) == []


def test_start_killed_at_any_disk_operation_leaves_no_row_without_its_files(store, crash_everywhere):
    prepare = "from luthier.store import runs\nfrom luthier.store.database import open_store\n"
    for _ in crash_everywhere(prepare, "runs.start(open_store(), 'eval', 'x', {'a': 1}, {})"):
        for run in runs.list_runs(store):
            assert {"config.json", "environment.json"} <= {p.name for p in runs.folder(store, run.id).iterdir()}
    assert len(runs.list_runs(store)) >= 1
    with store.read() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"


def test_a_run_without_its_folder_is_a_store_error(store):
    import shutil

    run = begin(store)
    shutil.rmtree(runs.folder(store, run.id))
    with pytest.raises(StoreError, match=run.id):
        runs.folder(store, run.id)


def test_metrics_are_appended_and_read_while_open(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(3):
            log.write({"step": step, "loss": 1.0 / (step + 1)})
        assert [r["step"] for r in read_metrics(path)] == [0, 1, 2]
    with MetricsLog(path) as log:
        log.write({"step": 3, "loss": float("inf")})
        log.close()
    assert read_metrics(path)[-1] == {"step": 3, "loss": None}
    assert read_metrics(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("keep", [1, 5, 11, 12, 13])
def test_a_torn_last_line_is_left_out_and_cut_off_before_appending(tmp_path, keep):
    path = tmp_path / "m.jsonl"
    whole = b'{"step": 1}\n{"step": 2}\n'
    path.write_bytes(whole[: 12 + keep - 1])
    before = 1 if keep < 13 else 2
    assert len(read_metrics(path)) == before
    with MetricsLog(path) as log:
        log.write({"step": 9})
    assert [r["step"] for r in read_metrics(path)] == [*[1, 2][:before], 9]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(StoreError, match=r"m\.jsonl:2"):
        read_metrics(path)


def test_truncate_after_drops_later_steps_and_goes_on(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsLog(path) as log:
        log.write({"event": "start"})
        for step in range(6):
            log.write({"step": step})
        log.truncate_after(2)
        log.write({"step": 3})
    assert read_metrics(path) == [{"event": "start"}, {"step": 0}, {"step": 1}, {"step": 2}, {"step": 3}]


def test_a_full_disk_while_logging_is_a_store_error(full_disk):
    if full_disk.stat().st_dev == full_disk.parent.stat().st_dev:
        pytest.skip("may not mount a small disk here")
    with pytest.raises(StoreError, match=r"disk is full.*m\.jsonl"), MetricsLog(full_disk / "m.jsonl") as log:
        for _ in range(100):
            log.write({"text": "x" * 10_000})
