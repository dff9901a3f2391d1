from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from luthier.core.engine import GENERATE, SCORE, STREAM, ContinuationScore, Sampling, check_health
from luthier.core.errors import EngineError
from luthier.core.message import user
from luthier.engines.fake import Config, FakeEngine
from luthier.strategies._labels import answer_with_labels

LABELS = ("billing", "refund", "late delivery")
ASKED = user("pay me back")


class Scorer(FakeEngine):
    """An engine that would say prose, and scores the labels as it is told."""

    logprobs = (-3.0, -1.0, -2.0)

    def score(self, requests: Any, progress: Any = None) -> Any:
        return [tuple(ContinuationScore(each, 2) for each in self.logprobs) for _ in requests]


def make_fake(capabilities: frozenset[str] = frozenset({GENERATE, STREAM, SCORE}), **options: Any) -> FakeEngine:
    engine = FakeEngine("fake", Config(**options))
    engine._info = engine.info.with_(capabilities=capabilities)
    return engine


@pytest.fixture
def scorer() -> Scorer:
    return Scorer("fake", Config())


def test_the_likeliest_label_answers(scorer: Any) -> None:
    engine = answer_with_labels(scorer, LABELS, lambda prompt: 7)
    assert engine.info.labels == LABELS
    first, second = engine.generate([ASKED, "raw text"], Sampling())
    assert (first.text, first.logprob, first.prompt_tokens, first.completion_tokens) == ("refund", -1.0, 7, 2)
    assert second.text == "refund"
    deltas = list(engine.stream(ASKED, Sampling()))
    assert "".join(delta.text for delta in deltas) == "refund"
    assert deltas[-1].generation.text == "refund"


def test_the_answer_is_the_one_that_evaluation_counts() -> None:
    """Same engine, same labels: evaluation's way of asking and the served one agree, ties included."""
    from luthier.core.dataset import Dataset, Example, Splits
    from luthier.core.task import PromptTemplate, Task
    from luthier.evaluation.asking import AskOptions

    texts = [f"ticket {number}: {LABELS[number % 3]} or something" for number in range(30)] + ["nothing"]
    examples = tuple(Example(str(n), user(text), "refund") for n, text in enumerate(texts))
    empty = Dataset("d", "labelled", ())
    task = Task("t", "classify", Splits(empty, empty, empty), PromptTemplate(labels=LABELS), (("exact", {}),))
    engine = make_fake()
    counted = [answer.text for answer in AskOptions(engine, task)(examples, lambda *_: None)]
    served = answer_with_labels(engine, LABELS).generate([e.messages for e in examples], Sampling())
    assert [generation.text for generation in served] == counted
    assert len(set(counted)) > 1


def test_equal_labels_go_to_the_first(scorer: Any) -> None:
    scorer.logprobs = (-1.0, -1.0, -1.0)
    assert answer_with_labels(scorer, LABELS).generate([ASKED], Sampling())[0].text == "billing"


def test_with_a_temperature_labels_are_drawn_by_their_share(scorer: Any) -> None:
    engine = answer_with_labels(scorer, LABELS)
    drawn = Counter(g.text for g in engine.generate([ASKED] * 4000, Sampling(temperature=0.5, seed=1)))
    weights = [math.exp(each / 0.5) for each in scorer.logprobs]
    for label, weight in zip(LABELS, weights, strict=True):
        assert drawn[label] / 4000 == pytest.approx(weight / sum(weights), abs=0.03)
    again = Counter(g.text for g in engine.generate([ASKED] * 4000, Sampling(temperature=0.5, seed=1)))
    assert drawn == again


@pytest.mark.parametrize(
    ("limits", "possible"),
    [({"top_k": 1}, {"refund"}), ({"top_k": 2}, {"refund", "late delivery"}), ({"top_p": 0.01}, {"refund"}),
     ({"top_p": 0.8}, {"refund", "late delivery"}), ({}, set(LABELS))],
)  # fmt: skip
def test_top_k_and_top_p(scorer: Any, limits: dict[str, Any], possible: set[str]) -> None:
    made = answer_with_labels(scorer, LABELS).generate([ASKED] * 500, Sampling(temperature=1.0, seed=3, **limits))
    assert {g.text for g in made} == possible


def test_stop_cuts(scorer: Any) -> None:
    scorer.logprobs = (-3.0, -2.0, -1.0)
    assert answer_with_labels(scorer, LABELS).generate([ASKED], Sampling(stop=(" deliv",)))[0].text == "late"


def test_not_a_number_is_an_error(scorer: Any) -> None:
    scorer.logprobs = (-3.0, math.nan, -1.0)
    with pytest.raises(EngineError):
        answer_with_labels(scorer, LABELS).generate([ASKED], Sampling())


def test_engines_that_need_no_help_stay_as_they_are(scorer: Any) -> None:
    assert answer_with_labels(scorer, ()) is scorer
    unable = make_fake(frozenset({GENERATE, STREAM}))
    assert answer_with_labels(unable, LABELS) is unable
    closed = make_fake(labels=LABELS)
    assert answer_with_labels(closed, LABELS) is closed


def test_a_label_below_min_p_of_the_likeliest_is_never_drawn(scorer: Any) -> None:
    engine = answer_with_labels(scorer, LABELS)
    assert engine.info.parameters == {"top_k", "min_p"}

    def drawn(min_p: float) -> set[str]:
        return {g.text for g in engine.generate([ASKED] * 500, Sampling(temperature=1.0, min_p=min_p, seed=2))}

    least, middle = math.exp(-2.0), math.exp(-1.0)  # how likely the other two are, by the likeliest
    assert drawn(least * 0.99) == set(LABELS)
    assert drawn(least * 1.01) == {"refund", "late delivery"}
    assert drawn(middle * 1.01) == {"refund"}


def test_health_is_the_inner_engines() -> None:
    check_health(answer_with_labels(make_fake(), LABELS), 1.0)
    with pytest.raises(EngineError, match="down"):
        check_health(answer_with_labels(make_fake(fail={"": "down"}), LABELS), 1.0)
