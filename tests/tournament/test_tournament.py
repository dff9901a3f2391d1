from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import luthier
from luthier.core.errors import ConflictError, InputError, LuthierError, NotFoundError, UnsupportedError
from luthier.core.task import Task
from luthier.evaluation import evaluate as evaluation
from luthier.store.database import Store, open_store
from luthier.store.lineage import lineage
from luthier.store.models import list_models
from luthier.store.runs import folder, list_runs, resume
from luthier.tournament.board import Board
from luthier.tournament.entry import Planned
from luthier.tournament.tournament import tournament

LABELS = ("billing", "delivery", "refund")
TASK = """
name: sorting
data: {path: rows.jsonl, split: {train: 0.5, validation: 0.1, test: 0.4}}
models: {decoder: tiny-decoder, encoder: tiny-encoder}
train: {max_steps: 3, dtype: fp32}
entrants:
  - {model: "fake:billing,delivery,refund", name: oracle}
  - zero_shot
  - lora
  - linear_probe
"""


@pytest.fixture
def store(home: Path) -> Store:
    return open_store()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A task of 100 rows; the fake engine finds most labels, tiny models with random weights find none."""
    draw = np.random.default_rng(0)
    rows = [
        {"text": f"row {i} is about {LABELS[i % 3] if draw.random() < 0.9 else 'nothing'}", "label": LABELS[i % 3]}
        for i in range(100)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "task.yaml"
    path.write_text(TASK)
    return path


@pytest.fixture
def both(tiny_decoder: str, tiny_encoder: str, store: Store, path: Path) -> Path:
    """The task, with both tiny models in the store."""
    return path


FAKES = ["entrants=[{name: one, model: 'fake:billing,delivery,refund'}, {name: two, model: fake, strategy: few_shot}]"]


def test_a_whole_tournament(both: Path, store: Store) -> None:
    plans: list[tuple[Task, list[Planned]]] = []
    stages: list[str] = []
    board = tournament(
        both,
        store=store,
        planned=lambda task, plan: plans.append((task, list(plan))),
        progress=lambda stage, done, total: stages.append(stage),
    )
    task, plan = plans[0]
    assert [p.entrant.name for p in plan] == ["oracle", "zero_shot", "lora", "linear_probe"]
    assert plan[2].serving["torch"] in ("swap", "merge")
    assert board.standings[0].name == "oracle"
    assert {s.status for s in board.standings} == {"done"}
    assert board.verdict["leader"] == "oracle" == board.verdict["keep"]
    lora, probe, zero = (board.standing(n) for n in ("lora", "linear_probe", "zero_shot"))
    assert lora is not None and probe is not None and zero is not None
    assert lora.trainable_parameters
    assert probe.trainable_parameters == 3 * 33
    assert zero.trainable_parameters == 0
    assert (lora.model, probe.model) == ("tiny-decoder", "tiny-encoder")
    assert lora.train_s is not None
    assert lora.artifact_mb is not None
    assert lora.artifact_mb > probe.artifact_mb > 0  # type: ignore[operator]
    assert all(s.latency_p50_s for s in board.standings)
    assert zero.weights_mb is not None
    assert set(zero.digests) == {"model", "base", "template", "prompt"}
    assert all(s.counts["examples"] == len(task.examples("test")) for s in board.standings)
    place = folder(store, board.run)
    assert Board.load(place).as_dict()["verdict"] == json.loads(json.dumps(board.verdict))
    assert "<svg" in (place / "board.html").read_text()
    assert stages.index("lora: train") < stages.index("oracle: evaluate"), "the test split comes last"
    graph = lineage(board.run, store).as_dict()
    assert {e["relation"] for e in graph["edges"]} >= {"entered", "compared in", "decided in"}


def test_training_is_never_handed_the_test_split(both: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import luthier.training.tune as tuning

    seen: list[Any] = []
    real = tuning.tune

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["splits"])
        return real(*args, **kwargs)

    monkeypatch.setattr(tuning, "tune", spy)
    tournament(both, store=store, only=["linear_probe"])
    assert [len(s.test) for s in seen] == [0]
    assert len(seen[0].train) == pytest.approx(50, abs=3)


def test_the_second_time_nothing_is_done_again(both: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tournament(both, store=store)
    before = len(list_runs(store))

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("opened an engine")

    monkeypatch.setattr("luthier.tournament.tournament.open_together", never)
    monkeypatch.setattr("luthier.training.tune.tune", never)
    again = tournament(both, store=store)
    assert again.run == first.run
    assert len(list_runs(store)) == before
    assert again.standings == first.standings
    assert again.verdict == first.verdict


@pytest.mark.parametrize("stopped_in", ["train", "evaluate"])
def test_interrupted_it_goes_on_with_what_is_missing(
    both: Path, store: Store, monkeypatch: pytest.MonkeyPatch, stopped_in: str
) -> None:
    import luthier.training.tune as tuning

    place, name = {"train": (tuning, "tune"), "evaluate": (evaluation, "evaluate")}[stopped_in]
    real = getattr(place, name)
    calls: list[Any] = []

    def interrupted_second(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    where = "luthier.training.tune.tune" if stopped_in == "train" else "luthier.tournament.tournament.evaluate"
    monkeypatch.setattr(where, interrupted_second)
    with pytest.raises(KeyboardInterrupt):
        tournament(both, store=store)
    run = list_runs(store, "tournament")[0]
    assert run.status == "interrupted"
    done = {r.id for r in list_runs(store) if r.status == "done"}
    assert done
    board = tournament(both, store=store)
    assert board.run == run.id
    assert len(board.finished) == 4
    work = len(calls) - 1
    assert work == {"train": 2, "evaluate": 4}[stopped_in], "each piece of work once"
    assert done <= {r.id for r in list_runs(store)}
    assert len(list_runs(store, "tune")) == 2
    assert len(list_runs(store, "eval")) == 4


def test_kill_nine_loses_nothing_that_was_finished(both: Path, home: Path, store: Store) -> None:
    code = """
import os, signal, sys
import luthier.tournament.tournament as t
real, calls = t.evaluate, []
def killed_third(*args, **kwargs):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
t.evaluate = killed_third
t.tournament(sys.argv[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(both)], capture_output=True, env={**os.environ}, timeout=120, check=False
    )
    assert done.returncode == -9, done.stderr.decode()
    before = {r.id: r.status for r in list_runs(store)}
    assert sorted(before.values()).count("running") == 1, "the tournament itself"
    board = tournament(both, store=store)
    assert before[board.run] == "running"
    assert len(board.finished) == 4
    after = list_runs(store)
    assert len(after) == len(before) + 2, "two evaluations were missing"


def test_a_failing_entrant_is_shown_and_the_others_go_on(both: Path, store: Store) -> None:
    board = tournament(
        both,
        [
            "entrants=[{name: good, model: 'fake:billing,delivery,refund'}, {name: wrong labels, model: 'fake:a,b'}, "
            "{name: diverges, method: lora, train: {learning_rate: 1.0e30, max_steps: 5, warmup: 0}}, {name: also, model: fake}]"
        ],
        store=store,
    )
    reasons = {s.name: s.reason for s in board.standings if s.status == "failed"}
    assert set(reasons) == {"wrong labels", "diverges"}
    assert "it lacks billing" in reasons["wrong labels"]
    assert {s.name for s in board.finished} == {"good", "also"}
    assert list_runs(store, "tournament")[0].summary["failed"] == reasons


def test_a_bug_in_one_entrant_costs_only_that_one(path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = evaluation.evaluate

    def broken(engine: Any, *args: Any, **kwargs: Any) -> Any:
        if engine.info.model == "fake":
            raise MemoryError("no room")
        return real(engine, *args, **kwargs)

    monkeypatch.setattr("luthier.tournament.tournament.evaluate", broken)
    board = tournament(path, FAKES, store=store)
    assert {s.name: s.reason for s in board.standings if s.status == "failed"} == {"two": "MemoryError: no room"}
    assert "Traceback" in (folder(store, board.run) / "errors.log").read_text()
    monkeypatch.setattr("luthier.tournament.tournament.evaluate", real)
    mended = tournament(path, FAKES, store=store)
    assert mended.run == board.run
    assert len(mended.finished) == 2


def test_when_all_fail_there_is_a_board_and_an_error(path: Path, store: Store) -> None:
    with pytest.raises(LuthierError, match=r"no entrant finished: one: .*it lacks"):
        tournament(path, ["entrants=[{name: one, model: 'fake:a,b'}]"], store=store)
    run = list_runs(store, "tournament")[0]
    assert run.status == "failed"
    assert Board.load(folder(store, run.id)).finished == ()


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("entrants=[{model: nowhere}]", NotFoundError, "entrant nowhere: model 'nowhere' is not known"),
        ("models.decoder=nowhere", NotFoundError, "entrant zero_shot: model 'nowhere'"),
        ("entrants=[{method: {name: lora, rnk: 2}}]", InputError, "entrant lora: .*rnk"),
        ("entrants=[{method: lora, train: {epoch: 2}}]", InputError, "entrant lora: .*Did you mean 'epochs'"),
        (
            "entrants=[{method: linear_probe, model: tiny-decoder}]",
            UnsupportedError,
            "entrant linear_probe: .*architecture",
        ),
        ("data.path=nowhere.jsonl", InputError, "nowhere.jsonl"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(
    both: Path, store: Store, override: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tournament(both, [override], store=store)
    assert list_runs(store) == []


def test_two_at_once_are_not_mixed(path: Path, store: Store) -> None:
    board = tournament(path, FAKES, store=store)
    resume(store, board.run)  # this process lives, so it looks busy
    with pytest.raises(ConflictError, match=f"running already, as run {board.run}"):
        tournament(path, FAKES, store=store)


def test_other_settings_are_another_tournament_that_shares_what_is_equal(both: Path, store: Store) -> None:
    first = tournament(both, store=store, only=["linear_probe", "oracle"])
    runs = len(list_runs(store))
    second = tournament(both, store=store, only=["linear_probe", "zero_shot"])
    assert second.run != first.run
    assert len(list_runs(store)) == runs + 2, "a tournament and an evaluation"
    a, b = first.standing("linear_probe"), second.standing("linear_probe")
    assert a is not None and b is not None
    assert (a.tune_run, a.eval_run, a.score) == (b.tune_run, b.eval_run, b.score)


def test_a_removed_model_is_made_again(both: Path, store: Store) -> None:
    from luthier.store.models import remove

    board = tournament(both, store=store, only=["linear_probe", "oracle"])
    target = next(s.target for s in board.standings if s.name == "linear_probe")
    remove(store, target)
    again = tournament(both, store=store, only=["linear_probe", "oracle"])
    assert len(again.finished) == 2
    assert target in [m.name for m in list_models(store)]


def test_leaking_test_rows_are_told(path: Path, store: Store, tmp_path: Path) -> None:
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(rows[:70]) + "\n")
    (tmp_path / "test.jsonl").write_text("\n".join(rows[60:]) + "\n")
    path.write_text("data: {train: train.jsonl, test: test.jsonl}\n")
    board = tournament(path, FAKES, store=store)
    assert any("10 of the 40 test inputs also occur in train" in note for note in board.notes)
    assert any("Only 40 test examples" in note for note in board.notes)


def test_an_adapter_in_the_store_can_enter_and_be_asked_another_way(both: Path, store: Store) -> None:
    board = tournament(both, store=store, only=["lora"])
    name = board.standings[0].target
    entrants = f"entrants=[{{name: own, model: {name}}}, {{name: shots, model: {name}, strategy: few_shot}}]"
    found = tournament(both, [entrants], store=store)
    own, shots = found.standing("own"), found.standing("shots")
    assert own is not None and shots is not None
    assert own.score == board.standings[0].score
    assert own.digests["prompt"] != shots.digests["prompt"]
    assert own.digests["model"] == shots.digests["model"]
    assert own.trainable_parameters == board.standings[0].trainable_parameters


def test_the_verb_is_in_the_package(path: Path, home: Path) -> None:
    for _ in range(2):  # also when the package of the same name is imported already
        assert len(luthier.tournament(path, FAKES).finished) == 2


SEARCHED = [
    "entrants=[{name: oracle, model: 'fake:billing,delivery,refund'}, {name: probe, method: linear_probe, search: 3}, "
    "{name: plain, method: linear_probe}]",
    "train={epochs: 4, dtype: fp32, batch_size: 16}",
    "seeds=2",
    "jobs=1",
    "budget={tokens: 400}",
    "machine={per_hour: 0.36}",
]


def test_searches_seeds_budgets_and_prices(tiny_encoder: str, path: Path, store: Store) -> None:
    stages: list[str] = []
    foretold: list[Any] = []
    board = tournament(
        path, SEARCHED, store=store, predicted=foretold.extend, progress=lambda stage, done, total: stages.append(stage)
    )
    probe, plain, oracle = (board.standing(name) for name in ("probe", "plain", "oracle"))
    assert probe is not None and plain is not None and oracle is not None
    assert {e.name for e in foretold} == {"probe", "plain"}
    assert probe.predicted["trainable"] == probe.trainable_parameters == 99
    assert len(probe.trials) == 3
    assert probe.trials[0]["params"] == {"train.learning_rate": 0.01}, "the defaults first"
    assert probe.settings["train"]["learning_rate"] == probe.chosen["train.learning_rate"]
    assert 0 < probe.spent["tokens"] <= 400
    assert 0 < plain.spent["tokens"] <= 400
    assert max(t["tokens"] for t in probe.trials) <= 400 // 3
    assert plain.spent["trainings"] == plain.repeats["trainings"] == 1
    for entrant in (probe, plain):
        assert [seed["seed"] for seed in entrant.seeds] == [0, 1]
        assert entrant.score["value"] == pytest.approx(np.mean([seed["value"] for seed in entrant.seeds]))
        promoted = [seed for seed in entrant.seeds if seed["promoted"]]
        assert [seed["target"] for seed in promoted] == [entrant.target]
        assert promoted[0]["validation"] == min(seed["validation"] for seed in entrant.seeds), (
            "chosen by validation only"
        )
    assert oracle.seeds == ()
    assert oracle.price_per_1000 == pytest.approx(oracle.latency_p50_s * 1000 * 0.36 / 3600)  # type: ignore[operator]
    assert any("means over 2 seeds" in reason for reason in board.verdict["reasons"])
    assert board.frontiers["latency"]
    assert any(stage.startswith("probe: trial 1 of 3") for stage in stages)
    models = [m.name for m in list_models(store) if m.kind == "adapter"]
    assert len(models) == 4, "two seeds of two entrants; the trials that lost are gone"
    page = (folder(store, board.run) / "board.html").read_text()
    assert "3 trials" in page
    assert "400 tokens" in page
    again = tournament(path, SEARCHED, store=store)
    assert (again.run, again.verdict) == (board.run, board.verdict)
    assert {s.name: s.predicted for s in again.standings} == {s.name: s.predicted for s in board.standings}
    assert [list(s.trials) for s in again.standings] == [list(s.trials) for s in board.standings]


def test_a_killed_search_goes_on(tiny_encoder: str, path: Path, store: Store) -> None:
    code = """
import os, signal, sys
import luthier.training.tune as t
real, calls = t.tune, []
def killed_in_third(*args, **kwargs):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
t.tune = killed_in_third
import luthier
luthier.tournament(sys.argv[1], sys.argv[2:])
"""
    overrides = [
        "entrants=[{name: probe, method: linear_probe, search: 4}]",
        "train={epochs: 2, dtype: fp32}",
        "jobs=1",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), *overrides], capture_output=True, timeout=180, check=False
    )
    assert done.returncode == -9, done.stderr.decode()
    before = {r.id for r in list_runs(store, "tune")}
    assert len(before) == 2
    board = tournament(path, overrides, store=store)
    assert len(board.standings[0].trials) == 4
    after = {r.id for r in list_runs(store, "tune")}
    assert before < after
    assert len(after) == 4, "two trials were missing"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search={trials: 2, space: {train.learning_rate: [1, 2]}, smapler: tpe}", "Did you mean 'sampler'"),
        ("search={space: {train.lerning_rate: [0.1, 0.2]}}", "entrant linear_probe: .*Did you mean 'learning_rate'"),
        ("search={space: {train.learning_rate: [-1.0, 0.2]}}", "entrant linear_probe: .*learning_rate.*greater than 0"),
        ("search={space: {objective.label_smoothing: [0.0, 0.1]}}", "search.metric=validation_accuracy"),
        ("search={sampler: grid}", "sampler grid needs lists"),
        ("budget={seconds: 0}", "budget.seconds"),
        ("seeds=none", "seeds: must be how many"),
    ],
)
def test_wrong_searches_are_refused_before_anything_starts(
    tiny_encoder: str, path: Path, store: Store, override: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tournament(path, [override, "entrants=[linear_probe]"], store=store)
    assert list_runs(store) == []


def test_a_search_needs_validation_rows(tiny_encoder: str, path: Path, store: Store) -> None:
    overrides = ["entrants=[{method: linear_probe, search: 2}]", "data.split={train: 0.6, validation: 0.0, test: 0.4}"]
    with pytest.raises(InputError, match=r"data\.split\.validation"):
        tournament(path, overrides, store=store)
