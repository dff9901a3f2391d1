from __future__ import annotations

import pytest

from luthier.core.dataset import Dataset, Splits
from luthier.core.run import Run
from luthier.core.task import PromptTemplate, Task
from luthier.evaluation.records import Record
from luthier.evaluation.result import UNPARSED, EvalResult, per_label, summarise

EMPTY = Dataset("x", "labelled", ())
TASK = Task(
    "t",
    "classify",
    Splits(EMPTY, EMPTY, EMPTY),
    PromptTemplate(labels=("a", "b", "c")),
    (("macro_f1", {}), ("accuracy", {})),
)


def record(index: int, target: str, answer: str, **more: object) -> Record:
    return Record(
        index,
        str(index),
        "",
        "",
        target,
        answer,
        {"macro_f1": float(target == answer), "accuracy": float(target == answer)},
        **more,
    )  # type: ignore[arg-type]


RECORDS = [
    record(0, "a", "a"),
    record(1, "a", "b", tie=True),
    record(2, "b", "b"),
    record(3, "b", "I would say b", parsed=False),
    record(4, "c", "", parsed=False, error="too long"),
    record(5, "b", "a"),
]


def test_scores_confusions_and_counts() -> None:
    found = summarise(TASK, RECORDS)
    assert found["primary"] == "macro_f1"
    # F1 of a: 2/4, of b: 2/5, of c: 0
    assert found["scores"]["macro_f1"]["value"] == pytest.approx((0.5 + 0.4 + 0.0) / 3)
    assert found["scores"]["accuracy"]["value"] == pytest.approx(2 / 6)
    assert found["confusion"] == {"a": {"a": 1, "b": 1}, "b": {"a": 1, "b": 1, UNPARSED: 1}, "c": {UNPARSED: 1}}
    assert found["counts"] == {"examples": 6, "unparsed": 1, "ties": 1, "errors": 1, "unscored": 0}
    assert found["labels"]["b"] == {
        "precision": 0.5,
        "recall": pytest.approx(1 / 3),
        "f1": pytest.approx(0.4),
        "support": 3,
    }


def test_labels_that_never_occur_have_zero_not_an_error() -> None:
    assert per_label(["a"], ["a"], ["a", "z"])["z"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_equal_records_give_equal_intervals() -> None:
    assert summarise(TASK, RECORDS) == summarise(TASK, RECORDS)


def test_the_commonest_mistakes_come_first() -> None:
    rest = {"model": "m", "task": "t", "split": "test", "strategy": "own", "latency": {}, "memory": {}, "seconds": 0.0}
    records = [*RECORDS, record(6, "b", "a"), record(7, "c", "a")]
    result = EvalResult.from_run(Run("r", "eval", "done", summary={**summarise(TASK, records), **rest}), records)
    assert result.confused(2) == [("b", "a", 2), ("a", "b", 1)]
    assert result.score == result.scores["macro_f1"]["value"]
    assert "records" not in result.as_dict()
