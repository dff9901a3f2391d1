"""BLEU, chrF and TER against sacrebleu's own corpus functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from luthier.core import catalog
from luthier.scorers._score import Answer, Figure, Target

TARGETS = [
    ("The cat sat on the mat.", "There is a cat on the mat, sitting."),
    ("He paid $3.50 for the book, I think.", "He paid 3.50 dollars for the book."),
    ("Rain fell all day on the old town.", "It rained on the old town the whole day long."),
    ("She said: “never again”, and left.", "She left and said never again."),
    ("No.", "Not at all."),
]
ANSWERS = [
    "The cat is on the mat.",
    "He paid $ 3.50 for that book, I think so.",
    "On the old town rain fell all day.",
    "She said never again, and she left.",
    "No!",
]
CHINESE = [("今天天气很好,我们去公园。",), ("他买了三本书和一支笔。",), ("北京是中国的首都。",)]
CHINESE_ANSWERS = ["今天天气好,我们去了公园。", "他买了一支笔和三本书。", "中国的首都是北京。"]

CONFIGURED = [
    ("bleu", {}, BLEU()),
    ("bleu", {"tokenize": "intl", "lowercase": True}, BLEU(tokenize="intl", lowercase=True)),
    ("bleu", {"tokenize": "char"}, BLEU(tokenize="char")),
    ("chrf", {}, CHRF()),
    ("chrf", {"order": 4, "beta": 1.0, "lowercase": True}, CHRF(char_order=4, beta=1, lowercase=True)),
    ("ter", {}, TER()),
    ("ter", {"normalized": True, "case_sensitive": True}, TER(normalized=True, case_sensitive=True)),
]
CHINESE_CONFIGURED = [
    ("bleu", {"tokenize": "zh"}, BLEU(tokenize="zh")),
    ("chrf", {}, CHRF()),
    ("ter", {"normalized": True, "asian_support": True}, TER(normalized=True, asian_support=True)),
]


def figure(name: str, options: dict[str, Any], answers: Sequence[str], targets: Sequence[Sequence[str]]) -> Figure:
    entry = catalog.load("scorers", name)
    wanted = [Target(t[0], tuple(t)) for t in targets]
    return Figure(entry, entry.configure(options), [Answer(a) for a in answers], wanted, [None] * len(answers))


def corpus(metric: Any, answers: Sequence[str], targets: Sequence[Sequence[str]]) -> float:
    return float(metric.corpus_score(answers, [list(t) for t in zip(*targets, strict=True)]).score) / 100.0


@pytest.mark.parametrize(("name", "options", "metric"), CONFIGURED)
@pytest.mark.parametrize("references", [1, 2])
def test_it_is_sacrebleus(name: str, options: dict[str, Any], metric: Any, references: int) -> None:
    targets = [t[:references] for t in TARGETS]
    found = figure(name, options, ANSWERS, targets)
    assert found.value == pytest.approx(corpus(metric, ANSWERS, targets))


@pytest.mark.parametrize(("name", "options", "metric"), CHINESE_CONFIGURED)
def test_chinese_is_sacrebleus(name: str, options: dict[str, Any], metric: Any) -> None:
    found = figure(name, options, CHINESE_ANSWERS, CHINESE)
    assert found.value == pytest.approx(corpus(metric, CHINESE_ANSWERS, CHINESE))
    assert 0.05 < found.value < 0.95


@pytest.mark.parametrize(
    ("name", "options", "metric"), [*CONFIGURED, ("bleu", {"tokenize": "none"}, BLEU(tokenize="none"))]
)
def test_every_resample_is_sacrebleus(name: str, options: dict[str, Any], metric: Any) -> None:
    """Single examples too: some have no 4-grams, some no hits of higher order, which is where smoothing matters."""
    rows = [[i] for i in range(5)] + [[0, 0, 1], [4, 4], [2, 3, 4], [1, 4]]
    counts = np.array([np.bincount(row, minlength=5) for row in rows], dtype=np.float32)
    expected = [corpus(metric, [ANSWERS[i] for i in row], [TARGETS[i] for i in row]) for row in rows]
    assert figure(name, options, ANSWERS, TARGETS)(counts) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "metric"), [("bleu", BLEU(effective_order=True)), ("chrf", CHRF()), ("ter", TER())])
def test_each_example_is_sacrebleus_sentence_score(name: str, metric: Any) -> None:
    entry = catalog.load("scorers", name)
    for answer, references in zip(ANSWERS, TARGETS, strict=True):
        found = entry(Answer(answer), Target(references[0], references), entry.configure())
        assert found.value == pytest.approx(metric.sentence_score(answer, list(references)).score / 100.0)


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
def test_an_empty_reference_is_left_out_and_an_empty_answer_is_not(name: str) -> None:
    entry = catalog.load("scorers", name)
    assert entry(Answer("words"), Target(" "), entry.configure()).value is None
    with_gap = figure(name, {}, [*ANSWERS, "some words"], [*TARGETS, ("",)])
    assert with_gap.value == pytest.approx(figure(name, {}, ANSWERS, TARGETS).value)
    assert np.isnan(figure(name, {}, ["words"], [("",)]).value)
    assert entry(Answer(""), Target("a b"), entry.configure()).value == (1.0 if name == "ter" else 0.0)
