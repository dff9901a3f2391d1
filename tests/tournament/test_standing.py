from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.message import user
from luthier.core.model import ModelRecord
from luthier.core.task import PromptTemplate, Task
from luthier.evaluation.evaluate import evaluate
from luthier.store.database import Store, open_store
from luthier.store.models import register
from luthier.tournament.entrant import Entrant
from luthier.tournament.entry import Entry, Planned
from luthier.tournament.standing import about, environment, notes, standing_of


@pytest.fixture
def store(home: Path) -> Store:
    return open_store()


def part(name: str, *texts: str) -> Dataset:
    return Dataset(
        name, "labelled", tuple(Example(t, user(t), "ab"[i % 2], source=f"{name}:{i}") for i, t in enumerate(texts))
    )


def task(train: Dataset, test: Dataset) -> Task:
    return Task("t", "classify", Splits(train, part("v"), test), PromptTemplate(labels=("a", "b")), (("accuracy", {}),))


TASK = task(part("train", "one", "two"), part("test", "three", "four", "five"))


def test_an_untrained_entrant(store: Store) -> None:
    entry = Entry(Planned(Entrant("mine", "fake", {"name": "few_shot", "shots": 2}), None))
    result = entry.results["fake"] = evaluate("fake", TASK, strategy={"name": "few_shot", "shots": 2}, store=store)
    found = standing_of(store, TASK, entry)
    assert found.eval_run == result.run.id
    assert (found.status, found.name, found.way, found.model) == ("done", "mine", "few_shot", "fake")
    assert (found.trainable_parameters, found.artifact_mb, found.train_s, found.base_mb) == (0, 0.0, None, None)
    assert found.score == result.scores["accuracy"]
    assert len(found.settings["strategy"]["config"]["examples"]) == 2, "the exact examples are on the board"
    assert found.digests["prompt"]
    json.dumps(found.settings)


def test_a_failed_entrant(store: Store) -> None:
    found = standing_of(store, TASK, Entry(Planned(Entrant("mine", "fake"), None), failure="out of memory"))
    assert (found.status, found.reason, found.score) == ("failed", "out of memory", {})


def test_an_adapter_that_somebody_trained_before_counts_as_trained(store: Store) -> None:
    register(store, ModelRecord("base", "base", "decoder", "0" * 64, size_bytes=371_000_000))
    meta = {"trainable_parameters": 920_000}
    adapter = ModelRecord("mine", "adapter", "decoder", "1" * 64, size_bytes=1_900_000, base="base", meta=meta)
    register(store, adapter)
    served = replace(adapter, name="served", kind="endpoint", base="base", meta={"target": "mine"})
    found = standing_of(store, TASK, Entry(Planned(Entrant("mine", "mine"), adapter), failure="x"))
    assert (found.trainable_parameters, found.artifact_mb, found.base_mb, found.trained) == (920_000, 1.9, 371.0, True)
    behind = standing_of(store, TASK, Entry(Planned(Entrant("served", "served"), served), failure="x"))
    assert (behind.base_mb, behind.trainable_parameters, behind.trained) == (371.0, 920_000, True)


def test_the_task_as_the_board_states_it() -> None:
    said = about(TASK)
    assert said["sizes"] == {"train": 2, "validation": 0, "test": 3}
    assert said["digest"] == TASK.digest
    assert json.loads(json.dumps(said)) == said | {"prompt": {**said["prompt"], "labels": ["a", "b"]}}


def test_leaks_are_noted_whatever_their_case_and_space() -> None:
    leaking = task(part("train", "One  text", "two"), part("test", *(["one text"] + [f"row {i}" for i in range(60)])))
    assert notes(leaking) == [
        "1 of the 61 test inputs also occur in train or validation: scores of trained entrants are too high."
    ]
    assert notes(TASK)[0].startswith("Only 3 test examples")


def test_the_machine_is_described_without_naming_it() -> None:
    said = environment()
    assert set(said) == {"processor", "threads", "platform", "python", "packages"}
    assert said["packages"]["torch"]
