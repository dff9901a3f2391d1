from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

import luthier
from luthier.core.engine import Engine, Sampling
from luthier.core.errors import EngineError, InputError, MismatchError, NotFoundError, UnsupportedError
from luthier.core.message import last_user_text, user
from luthier.core.run import no_progress
from luthier.core.task import Task
from luthier.engines.fake import Config as FakeConfig
from luthier.engines.fake import FakeEngine
from luthier.evaluation.evaluate import ask_with, evaluate
from luthier.evaluation.records import RECORDS, load_records, read_records
from luthier.evaluation.result import EvalResult
from luthier.store.database import Store, open_store
from luthier.store.lineage import lineage
from luthier.store.runs import find_run, folder, list_runs
from luthier.strategies.zero_shot import wrap
from luthier.tasks.own import read_task

LABELS = ("billing", "delivery", "refund")


@pytest.fixture
def store(home: Path) -> Store:
    return open_store()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A task of 120 rows. Most name their label, which is what the fake engine looks for; every fifth names another one."""
    draw = np.random.default_rng(0)
    rows = []
    for i in range(120):
        label = LABELS[i % 3]
        named = LABELS[int(draw.integers(3))] if i % 5 == 0 else label
        rows.append({"text": f"row {i}: about {named} " + "and so on " * int(draw.integers(8)), "label": label})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "task.yaml"
    path.write_text("name: sorting\ndata: {path: rows.jsonl, split: {train: 0.3, validation: 0.1, test: 0.6}}\n")
    return path


@pytest.fixture
def task(path: Path) -> Task:
    return read_task(path)


class Counted(FakeEngine):
    """Counts what it is asked; stops after ``most`` requests of more than one."""

    def __init__(self, most: int | None = None, error: BaseException | None = None) -> None:
        super().__init__("counted", FakeConfig())
        self.asked: list[str] = []
        self.most, self.error = most, error or EngineError("connection lost")

    def score(self, requests, progress=no_progress):  # type: ignore[no-untyped-def]
        if self.most is not None and len(self.asked) >= self.most:
            raise self.error
        self.asked += [last_user_text(r.prompt) for r in requests]
        return super().score(requests, progress)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of 10 instead of 128, so that small tasks have several."""
    monkeypatch.setattr("luthier.evaluation.asking.AskOptions.__init__.__defaults__", (10,))
    yield


def test_the_figures_are_scikit_learns_on_the_kept_records(store: Store, task: Task) -> None:
    result = evaluate("fake", task, store=store)
    records = load_records(store, result.run)
    assert len(records) == len(task.examples("test")) == result.counts["examples"]
    assert [r.id for r in records] == [e.id for e in task.examples("test")]
    targets, answers = [r.target for r in records], [r.answer for r in records]
    assert result.score == pytest.approx(f1_score(targets, answers, average="macro"))
    assert result.scores["accuracy"]["value"] == pytest.approx(accuracy_score(targets, answers))
    assert 0.7 < result.score < 1.0
    for score in result.scores.values():
        assert score["low"] < score["value"] < score["high"]
    expected = precision_recall_fscore_support(targets, answers, labels=list(task.labels), zero_division=0)
    ours = [[result.labels[label][k] for label in task.labels] for k in ("precision", "recall", "f1", "support")]
    assert np.allclose(ours, expected)
    matrix = confusion_matrix(targets, answers, labels=list(task.labels))
    assert [[result.confusion[t].get(a, 0) for a in task.labels] for t in task.labels] == matrix.tolist()
    target, answer, count = result.confused()[0]
    assert matrix[task.labels.index(target)][task.labels.index(answer)] == count == max(matrix[~np.eye(3, dtype=bool)])


def test_a_run_says_what_was_asked_how_and_of_what(store: Store, task: Task) -> None:
    result = evaluate("fake", task, store=store, strategy={"name": "few_shot", "shots": 3})
    config = json.loads((folder(store, result.run.id) / "config.json").read_text())["values"]
    assert config["model"] == "fake"
    assert config["task"]["digest"] == task.digest
    assert config["strategy"]["name"] == "few_shot"
    shots = config["strategy"]["config"]["examples"]
    train = {(e.text, e.target) for e in task.examples("train")}
    assert len(shots) == 3
    assert {tuple(s) for s in shots} <= train, "shots come from the train split only"
    assert config["engine"]["prompt_digest"]
    assert result.latency["requests"] == 20
    assert 0 <= result.latency["p50_s"] <= result.latency["p95_s"]
    graph = lineage(result.run.id, store).as_dict()
    assert {(e["source"]["kind"], e["relation"]) for e in graph["edges"]} == {
        ("model", "evaluated in"),
        ("task", "scored in"),
    }


def test_equal_work_is_not_done_twice(store: Store, task: Task) -> None:
    engine = Counted()
    first = evaluate(engine, task, store=store)
    asked = len(engine.asked)
    again = evaluate(engine, task, store=store)
    assert (again.run.id, len(engine.asked)) == (first.run.id, asked)
    assert again.as_dict() == first.as_dict()
    assert again.records == first.records
    fresh = evaluate(engine, task, store=store, fresh=True)
    assert fresh.run.id != first.run.id
    assert fresh.scores == first.scores


def test_an_engine_that_does_not_say_what_it_is_is_asked_anew(store: Store, task: Task) -> None:
    engine = Counted()
    engine._info = engine._info.with_(model_digest="")
    first = evaluate(engine, task, store=store)
    second = evaluate(engine, task, store=store)
    assert second.run.id != first.run.id
    assert len(engine.asked) == 2 * (len(task.examples("test")) + 22)


def test_other_work_is_other_work(store: Store, task: Task, path: Path) -> None:
    first = evaluate("fake", task, store=store).run.id
    others = [
        evaluate("fake", task, store=store, split="validation"),
        evaluate("fake", task, store=store, limit=20),
        evaluate("fake", task, store=store, strategy="few_shot"),
        evaluate("fake", read_task(path, ["prompt.instruction=Sort it."]), store=store),
        evaluate("fake", read_task(path, ["scorers=[accuracy]"]), store=store),
        evaluate("fake", task, store=store, options={"context_length": 4000}),
    ]
    assert len({first, *(r.run.id for r in others)}) == 7
    assert evaluate("fake", path, store=store).run.id == first


@pytest.mark.parametrize("error", [EngineError("connection lost"), KeyboardInterrupt()])
def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    store: Store, task: Task, small_blocks: None, error: BaseException, tmp_path: Path
) -> None:
    whole = evaluate(Counted(), task, store=open_store(tmp_path / "elsewhere"))
    with pytest.raises(type(error)):
        evaluate(Counted(most=30, error=error), task, store=store)
    stopped = list_runs(store)[0]
    assert stopped.status == ("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
    kept = load_records(store, stopped)
    assert len(kept) == 30
    alive = Counted()
    resumed = evaluate(alive, task, store=store)
    assert resumed.run.id == stopped.id
    assert resumed.run.status == "done"
    assert len(list_runs(store)) == 1
    left = len(task.examples("test")) - 30
    assert len(alive.asked) == left + resumed.latency["requests"] + 2
    assert resumed.scores == whole.scores
    assert [replace(r, latency_s=0.0) for r in resumed.records] == [replace(r, latency_s=0.0) for r in whole.records]


def test_records_of_a_killed_process_are_taken_up(store: Store, task: Task, small_blocks: None) -> None:
    with pytest.raises(EngineError):
        evaluate(Counted(most=20), task, store=store)
    run = list_runs(store)[0]
    place = folder(store, run.id)
    environment = json.loads((place / "environment.json").read_text())
    # As kill -9 leaves it: the row says running, the process is gone, the last line is half written.
    from luthier.store.runs import resume

    resume(store, run.id)
    (place / "environment.json").write_text(json.dumps({**environment, "pid": 2**22 + os.getpid()}))
    (place / RECORDS).write_bytes((place / RECORDS).read_bytes()[:-30])
    assert len(read_records(place)) == 19
    alive = Counted()
    result = evaluate(alive, task, store=store)
    assert result.run.id == run.id
    assert len(alive.asked) == len(task.examples("test")) - 19 + 22


def test_a_living_process_is_not_joined(store: Store, task: Task, small_blocks: None) -> None:
    with pytest.raises(EngineError):
        evaluate(Counted(most=20), task, store=store)
    from luthier.store.runs import resume

    busy = resume(store, list_runs(store)[0].id)  # this process lives
    assert evaluate(Counted(), task, store=store).run.id != busy.id


def test_an_engine_that_brings_its_prompt_keeps_it(store: Store, task: Task) -> None:
    own = wrap(FakeEngine("mine", FakeConfig()), entry_config("My own {labels}."))
    result = evaluate(own, task, store=store)
    assert result.strategy == "own"
    config = json.loads((folder(store, result.run.id) / "config.json").read_text())["values"]
    assert config["engine"]["prompt_digest"] == own.info.prompt_digest
    bare = evaluate(FakeEngine("mine", FakeConfig()), task, store=store)
    assert bare.strategy == "zero_shot"


def entry_config(instruction: str):  # type: ignore[no-untyped-def]
    from luthier.strategies.zero_shot import Config

    return Config(prompt={"instruction": instruction})


def test_a_classification_head_is_asked_the_bare_text(store: Store, task: Task) -> None:
    head = FakeEngine("head", FakeConfig(labels=LABELS))
    assert ask_with(head, None, task).engine is head
    assert evaluate(head, task, store=store).strategy == "own"
    with pytest.raises(UnsupportedError, match="cannot be put around it"):
        evaluate(head, task, store=store, strategy="few_shot")
    with pytest.raises(MismatchError, match="it lacks refund; it has thanks"):
        evaluate(FakeEngine("head", FakeConfig(labels=("billing", "delivery", "thanks"))), task, store=store)
    assert len(list_runs(store)) == 1, "nothing was begun for what cannot work"


def test_generated_answers(store: Store, tmp_path: Path) -> None:
    rows = [{"question": f"What is {i}+{i}?", "answer": str(2 * i)} for i in range(30)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "sums.yaml"
    path.write_text("data: {path: sums.jsonl, split: {train: 0.2, validation: 0, test: 0.8}}\nmax_new_tokens: 4\n")
    engine = FakeEngine(
        "sums", FakeConfig(answers={f" {i}+{i}?": f"{2 * i}\n" if i % 2 else "no idea" for i in range(30)})
    )
    result = evaluate(engine, path, store=store)
    expected = np.mean([int(e.text.split("+")[1][:-1]) % 2 for e in read_task(path).examples("test")])
    assert result.primary == "exact"
    assert result.score == pytest.approx(expected)
    assert result.labels == {} == result.confusion
    assert all(r.completion_tokens for r in result.records)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split": "dev"}, InputError, "train, validation or test; got 'dev'"),
        ({"limit": 0}, InputError, "limit must be at least 1"),
        ({"strategy": "few-shot"}, NotFoundError, "Did you mean 'few_shot'"),
        ({"strategy": {"name": "few_shot", "shot": 3}}, InputError, "Did you mean 'shots'"),
        ({"strategy": {"name": "few_shot", "shots": 1000}}, InputError, "shots"),
        ({"engine": "vlm"}, InputError, "engine"),
        ({"options": {"latency": 1}}, InputError, "latency_s"),
    ],
)
def test_bad_arguments(
    store: Store, task: Task, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate("fake", task, store=store, **arguments)  # type: ignore[arg-type]
    assert list_runs(store) == []


def test_an_unknown_model_names_the_command_that_fetches_it(store: Store, task: Task) -> None:
    with pytest.raises(NotFoundError, match="luthier pull smollm2-135m"):
        evaluate("smollm2-135m", task, store=store)


def test_a_split_without_examples(store: Store, path: Path) -> None:
    task = read_task(path, ["data.split.train=0.4", "data.split.validation=0"])
    with pytest.raises(InputError, match="no validation examples"):
        evaluate("fake", task, store=store, split="validation")


def test_results_come_back_from_the_store(store: Store, task: Task) -> None:
    result = evaluate("fake", task, store=store)
    run = find_run(store, result.run.id)
    assert EvalResult.from_run(run, load_records(store, run)).as_dict() == result.as_dict()


def test_the_verb_is_in_the_package(home: Path, path: Path) -> None:
    assert luthier.evaluate("fake", path).score > 0.7


class TestOnTinyModels:
    """The same over the torch engine."""

    def test_a_decoder_scores_labels_and_single_requests_are_timed(self, tiny_decoder: str, task: Task) -> None:
        result = evaluate(tiny_decoder, task, limit=24, options={"dtype": "fp32"})
        assert result.strategy == "zero_shot"
        assert set(result.records[0].logprobs) == set(LABELS)
        assert result.latency["p50_s"] > 0
        assert 0.05 < result.memory["weights_mb"] < 1, "some 30 thousand parameters in fp32"

    def test_scores_are_those_of_asking_one_by_one(self, tiny_decoder: str, task: Task) -> None:
        from luthier.core.engine import ScoreRequest
        from luthier.strategies._load import load

        result = evaluate(tiny_decoder, task, limit=12, options={"dtype": "fp32"})
        engine: Engine = load(tiny_decoder, options={"dtype": "fp32"})
        for record, example in zip(result.records, task.examples("test"), strict=False):
            asked = ScoreRequest(task.prompt.messages(example.text), task.labels)
            alone = [s.logprob for s in engine.score([asked])[0]]
            assert [record.logprobs[label] for label in task.labels] == pytest.approx(alone, abs=1e-4)
        assert engine.generate([user("x")], Sampling(max_new_tokens=1))[0].prompt_tokens > 0
        engine.close()

    def test_an_encoder_without_a_head_is_refused(self, tiny_encoder: str, task: Task) -> None:
        with pytest.raises(UnsupportedError, match="tiny-encoder"):
            evaluate(tiny_encoder, task, limit=5)


def test_says_when_examples_were_trained_on(store: Store, path: Path) -> None:
    from luthier.core.model import ModelRecord
    from luthier.store import artifacts, runs
    from luthier.store.models import register

    task = read_task(path)
    run = runs.start(store, "tune", "seen", {}, {})
    runs.record_trained_on(store, run.id, (e.id for e in task.splits.test.examples[:5]))
    with artifacts.staged(store) as staging:
        (staging / "weights").write_bytes(b"weights")
        digest, size = artifacts.put(store, staging)
    register(store, ModelRecord("below", "adapter", "decoder", digest, size, run_id=run.id))
    register(store, ModelRecord("fake", "endpoint", "decoder", digest, size, meta={"target": "below"}))
    engine = FakeEngine("fake", FakeConfig(labels=LABELS))
    result = evaluate(engine, task, store=store)
    assert result.model == "fake"
    assert f"5 of these {len(result.records)} examples were trained on by fake" in result.warnings[0]
    assert EvalResult.from_run(find_run(store, result.run.id), result.records).warnings == result.warnings
    assert not evaluate(engine, task, split="validation", store=store).warnings
