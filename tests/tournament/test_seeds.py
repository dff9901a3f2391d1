from __future__ import annotations

import numpy as np
import pytest

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.message import user
from luthier.core.run import Run
from luthier.core.task import PromptTemplate, Task
from luthier.evaluation.records import Record
from luthier.evaluation.result import EvalResult, summarise
from luthier.tournament.seeds import (
    best_seed,
    compare_entrants,
    labels_over_seeds,
    metric_falls,
    scores_over_seeds,
    validation_value,
)

COUNT = 200


def task() -> Task:
    empty = Dataset("x", "labelled", ())
    rows = Dataset("x", "labelled", tuple(Example(str(i), user(str(i)), "ab"[i % 2]) for i in range(COUNT)))
    return Task("t", "classify", Splits(empty, empty, rows), PromptTemplate(labels=("a", "b")), (("accuracy", {}),))


def result(right: float, seed: int) -> EvalResult:
    good = np.random.default_rng(seed).random(COUNT) < right
    records = []
    for i in range(COUNT):
        target = "ab"[i % 2]
        answer = target if good[i] else "ba"[i % 2]
        records.append(Record(i, str(i), "s", "x", target, answer, scores={"accuracy": float(good[i])}))
    return EvalResult(
        Run(f"r{seed}", "eval", "done"), "m", "t", "test", "own", records=tuple(records), **summarise(task(), records)
    )


def test_one_seed_is_its_own_score() -> None:
    one = result(0.8, 0)
    assert scores_over_seeds(task(), [one]) == {"accuracy": dict(one.scores["accuracy"])}
    assert labels_over_seeds([one]) == {k: dict(v) for k, v in one.labels.items()}


def test_the_interval_of_several_holds_the_spread_between_seeds() -> None:
    alike = [result(0.8, seed) for seed in range(3)]
    apart = [result(right, seed) for seed, right in enumerate((0.6, 0.8, 1.0))]
    found = [scores_over_seeds(task(), each)["accuracy"] for each in (alike, apart)]
    for score, each in zip(found, (alike, apart), strict=True):
        assert score["value"] == pytest.approx(np.mean([r.score for r in each]))
        assert score["seeds"] == 3
    assert found[1]["seed_std"] > 0.1 > found[0]["seed_std"]
    assert found[1]["high"] - found[1]["low"] > 3 * (found[0]["high"] - found[0]["low"])


def test_a_difference_that_seeds_explain_is_not_detected() -> None:
    steady = {"a": [result(0.9, s) for s in range(3)], "b": [result(0.7, s) for s in range(3, 6)]}
    shaky = {
        "a": [result(r, s) for s, r in enumerate((0.99, 0.6, 0.98))],
        "b": [result(r, s) for s, r in enumerate((0.95, 0.5, 0.65), start=3)],
    }
    found = [compare_entrants(task(), each)[0] for each in (steady, shaky)]
    assert found[0].p_adjusted < 0.01
    assert found[1].p_adjusted > 0.05
    assert found[0].value == pytest.approx(
        np.mean([r.score for r in steady["a"]]) - np.mean([r.score for r in steady["b"]])
    )


def test_entrants_with_and_without_seeds_are_compared() -> None:
    found = compare_entrants(task(), {"prompt": [result(0.5, 9)], "tuned": [result(0.9, s) for s in range(2)]})
    assert [(d.first, d.second) for d in found] == [(0, 1)]
    assert found[0].p_adjusted < 0.05


def test_the_seed_to_promote_is_the_best_on_validation() -> None:
    assert best_seed([0.4, 0.2, 0.3], lower_is_better=True) == 1
    assert best_seed([0.4, 0.2, 0.5], lower_is_better=False) == 2
    assert best_seed([None, 0.2, None], lower_is_better=True) == 1
    assert best_seed([None, None], lower_is_better=True) == 0
    assert best_seed([0.2, 0.2], lower_is_better=True) == 0


def test_metrics() -> None:
    assert metric_falls("validation_loss")
    assert metric_falls("validation_perplexity")
    assert not metric_falls("validation_accuracy")
    assert validation_value({"validation_loss": 1}, "validation_loss") == 1.0
    assert validation_value({}, "validation_loss") is None
