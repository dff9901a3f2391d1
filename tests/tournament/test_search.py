"""Searches with a trainer that computes instead of training: what is proposed, pruned, kept, and found again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import InputError, TrainingError
from luthier.core.model import ModelRecord
from luthier.core.run import no_progress
from luthier.store.database import Store, open_store
from luthier.store.models import list_models, register
from luthier.store.runs import finish, list_runs, start
from luthier.tournament.entry import Trained
from luthier.tournament.search import Course
from luthier.tournament.settings import Search
from luthier.tournament.spaces import Choice, Range, applied
from luthier.tournament.trainer import Watch
from luthier.training.interrupt import Halt

SPACE = {"train.learning_rate": Range(1e-5, 1e-1, log=True), "method.rank": Choice((4, 8))}
FIRST = {"train.learning_rate": 1e-4, "method.rank": 8}


@pytest.fixture
def store(home: Path) -> Store:
    return open_store()


class Trainer:
    """The loss is the distance from a learning rate of 1e-3, and falls over four validations."""

    def __init__(self, store: Store, before: Callable[[int], None] = lambda number: None) -> None:
        self.store, self.before = store, before
        self.seen: list[dict[str, Any]] = []
        self.halted = 0

    def __call__(self, config: Mapping[str, Any], progress: Any, watch: Watch) -> Trained:
        params = {"train.learning_rate": config["train"]["learning_rate"], "method.rank": config["method"]["rank"]}
        self.seen.append(params)
        self.before(len(self.seen))
        number = len(self.seen)
        loss = abs(math.log10(params["train.learning_rate"]) + 3) + 0.01 * params["method.rank"]
        progress("train", 0, 4)
        try:
            for step in range(1, 5):
                value = loss * (2 - step / 4)
                watch({"step": step, "elapsed_s": 1.0 * step, "tokens": 10 * step, "validation_loss": value}, step / 4)
        except Halt:
            self.halted += 1
            raise
        run = start(self.store, "tune", f"trial {number}", {}, {})
        summary = {"validation_loss": loss, "elapsed_s": 4.0, "tokens": 40}
        finish(self.store, run.id, "done", summary)
        name = f"model-{number}"
        register(self.store, ModelRecord(name, "adapter", "decoder", f"{number:064d}", run_id=run.id))
        return Trained(0, name, run.id, summary, made=True)


def course(store: Store, tmp_path: Path, train: Any, **search: Any) -> Course:
    chosen = Search(**{"trials": 8, "pruner": "none", **search})
    base = {"model": {"base": "m"}, "method": {"name": "lora", "rank": 8}, "train": {}}
    return Course(
        store=store,
        path=tmp_path / "study.db",
        name="lora",
        search=chosen,
        space=SPACE,
        metric=chosen.metric or "validation_loss",
        configure=lambda params: applied(base, params),
        first=FIRST,
        train=train,
        progress=no_progress,
    )


def test_it_finds_what_is_good_and_starts_with_the_defaults(store: Store, tmp_path: Path) -> None:
    train = Trainer(store)
    found = course(store, tmp_path, train, trials=12).run()
    assert train.seen[0] == FIRST
    assert len(found.trials) == len(train.seen) == 12
    losses = [t.value for t in found.trials]
    best = min(range(12), key=lambda i: losses[i])  # type: ignore[arg-type,return-value]
    assert found.params == found.trials[best].params
    assert found.trained.summary["validation_loss"] == losses[best]
    assert losses[best] < losses[0], "better than the defaults"  # type: ignore[operator]
    assert all(1e-5 <= t.params["train.learning_rate"] <= 1e-1 for t in found.trials)
    assert [t.tokens for t in found.trials] == [40] * 12
    assert [round(x, 2) for x, _ in found.trials[0].curve] == [0.25, 0.5, 0.75, 1.0]


def test_the_models_that_lost_are_dropped_and_their_runs_stay(store: Store, tmp_path: Path) -> None:
    found = course(store, tmp_path, Trainer(store), trials=5).run()
    assert [m.name for m in list_models(store)] == [found.trained.target]
    assert len(list_runs(store, "tune")) == 5


def test_a_model_that_was_there_before_is_not_dropped(store: Store, tmp_path: Path) -> None:
    train = Trainer(store)

    def reused(*args: Any) -> Trained:
        return replace(train(*args), made=False)

    course(store, tmp_path, reused, trials=3).run()
    assert len(list_models(store)) == 3


def test_the_worse_half_is_given_up(store: Store, tmp_path: Path) -> None:
    train = Trainer(store)
    found = course(store, tmp_path, train, trials=12, pruner="halving", sampler="random").run()
    pruned = [t for t in found.trials if t.state == "pruned"]
    assert len(pruned) == train.halted > 2
    assert all(t.tokens < 40 and t.curve and "worse half" in t.reason for t in pruned)
    unpruned = course(store, tmp_path / "..", Trainer(store), trials=12, sampler="random")
    best = min(float(t.value or 9) for t in replace(unpruned, path=tmp_path / "other.db").run().trials)
    assert min(float(t.value or 9) for t in found.trials if t.state == "done") == pytest.approx(best), (
        "not at the cost of the best"
    )


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_an_interrupted_search_proposes_what_an_unbroken_one_would_have(
    store: Store, tmp_path: Path, sampler: str
) -> None:
    space = (
        {"train.learning_rate": Choice((1e-4, 1e-3, 1e-2)), "method.rank": Choice((4, 8))}
        if sampler == "grid"
        else SPACE
    )

    def make(folder: str, train: Any) -> Course:
        (tmp_path / folder).mkdir(exist_ok=True)
        return replace(course(store, tmp_path / folder, train, trials=6, sampler=sampler), space=space)

    whole = Trainer(store)
    expected = make("whole", whole).run()

    class Died(BaseException):
        pass

    def dies(number: int) -> None:
        if number == 4:
            raise Died

    broken = Trainer(store, dies)
    with pytest.raises(Died):
        make("broken", broken).run()
    resumed = Trainer(store)
    found = make("broken", resumed).run()
    assert broken.seen[:3] + resumed.seen == whole.seen, "the trial that was running is done again with its settings"
    assert [t.params for t in found.trials] == [t.params for t in expected.trials]
    assert found.params == expected.params


def test_a_finished_search_trains_nothing(store: Store, tmp_path: Path) -> None:
    first = course(store, tmp_path, Trainer(store), trials=3).run()
    train = Trainer(store)
    again = course(store, tmp_path, train, trials=3).run()
    assert train.seen == []
    assert (again.params, again.trained.target) == (first.params, first.trained.target)


def test_a_removed_winner_is_trained_again(store: Store, tmp_path: Path) -> None:
    from luthier.store.models import remove

    first = course(store, tmp_path, Trainer(store), trials=3).run()
    remove(store, first.trained.target)
    train = Trainer(store)
    course(store, tmp_path, train, trials=3).run()
    assert train.seen == [first.params]


def test_a_grid_takes_every_combination_once(store: Store, tmp_path: Path) -> None:
    train = Trainer(store)
    grid = replace(
        course(store, tmp_path, train, trials=100, sampler="grid"),
        space={"train.learning_rate": Choice((1e-4, 1e-2)), "method.rank": Choice((4, 8))},
    )
    assert len(grid.run().trials) == 4
    assert len({tuple(seen.values()) for seen in train.seen}) == 4


def test_failed_trials_are_told_and_do_not_end_the_search(store: Store, tmp_path: Path) -> None:
    def diverges(number: int) -> None:
        if number in (2, 3):
            raise TrainingError("the loss is nan at step 3")

    found = course(store, tmp_path, Trainer(store, diverges), trials=5).run()
    failed = [t for t in found.trials if t.state == "failed"]
    assert [t.reason for t in failed] == ["the loss is nan at step 3"] * 2
    assert len(found.trials) == 5


def test_when_all_fail_the_reasons_are_told(store: Store, tmp_path: Path) -> None:
    def never(number: int) -> None:
        raise TrainingError("the loss is nan")

    with pytest.raises(TrainingError, match="none of the 3 trials finished: the loss is nan"):
        course(store, tmp_path, Trainer(store, never), trials=3).run()


def test_an_unknown_metric_names_those_there_are(store: Store, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"search\.metric must be one of validation_loss; got 'validation_f1'"):
        course(store, tmp_path, Trainer(store), metric="validation_f1", trials=1).run()


def test_other_errors_are_not_taken_for_trials(store: Store, tmp_path: Path) -> None:
    def full(number: int) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        course(store, tmp_path, Trainer(store, full)).run()
    assert issubclass(InputError, Exception)


def test_a_trial_is_judged_by_its_best_validation_not_its_last(store: Store, tmp_path: Path) -> None:
    """Weights of the best validation are kept, so one that falls early and rises again is not given up for rising."""

    class Overfits(Trainer):
        def __call__(self, config: Mapping[str, Any], progress: Any, watch: Watch) -> Trained:
            number = len(self.seen) + 1
            if number == 2:
                for step, value in ((1, 0.1), (2, 5.0)):  # far better than the first trial, then far worse
                    watch({"step": step, "validation_loss": value}, step / 4)
            return super().__call__(config, progress, watch)

    found = course(store, tmp_path, Overfits(store), trials=2, pruner="halving").run()
    assert [t.state for t in found.trials] == ["done", "done"]
