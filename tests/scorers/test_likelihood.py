"""Perplexity, bits per byte and per character, and what a model would have said."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from luthier.core import catalog
from luthier.scorers import greedy_match
from luthier.scorers._score import Answer, Figure, Option, Score, Target

TEXTS = ("The cat  sat\non the mat.", "今天天气很好。", "naïve – 3 €", "word")
NATS = (21.5, 30.25, 12.0, 3.5)
TOKENS = (9, 8, 7, 1)


def asked(text: str, nats: float, tokens: int, greedy: bool | None = None) -> Answer:
    return Answer("", (Option(text, -nats, tokens, greedy),))


ANSWERS = [asked(*row) for row in zip(TEXTS, NATS, TOKENS, strict=True)]
TARGETS = [Target(text) for text in TEXTS]


def figure(name: str, answers: Sequence[Answer], targets: Sequence[Target], **options: Any) -> float:
    entry = catalog.load("scorers", name)
    return Figure(entry, entry.configure(options), answers, targets, [None] * len(answers)).value


def one(name: str, answer: Answer, target: Target, **options: Any) -> Score:
    entry = catalog.load("scorers", name)
    found: Score = entry(answer, target, entry.configure(options))
    return found


def words(text: str) -> int:
    return len(re.split(r"\s+", text))


@pytest.mark.parametrize(
    ("level", "units"),
    [
        ("word", sum(map(words, TEXTS))),
        ("byte", sum(len(t.encode()) for t in TEXTS)),
        ("token", sum(TOKENS)),
    ],
)
def test_perplexity_is_of_the_whole_set(level: str, units: int) -> None:
    """As lm-evaluation-harness's weighted_perplexity: exp(-sum of log-likelihoods / sum of units)."""
    assert figure("perplexity", ANSWERS, TARGETS, level=level) == pytest.approx(math.exp(sum(NATS) / units))


def test_bits() -> None:
    bits = sum(NATS) / math.log(2)
    assert figure("bits_per_byte", ANSWERS, TARGETS) == pytest.approx(bits / sum(len(t.encode()) for t in TEXTS))
    assert figure("bits_per_character", ANSWERS, TARGETS) == pytest.approx(bits / sum(map(len, TEXTS)))


def test_a_textbooks_example() -> None:
    """6 bits a token and 2 characters a token are 3 bits a character; perplexity is 2 to the bits."""
    text, tokens = "ab" * 50, 50
    answer, target = asked(text, 6 * tokens * math.log(2), tokens), Target(text)
    assert one("bits_per_character", answer, target).value == pytest.approx(3.0)
    assert one("bits_per_byte", answer, target).value == pytest.approx(3.0)  # ASCII in UTF-8: 8 bits a character
    assert one("perplexity", answer, target, level="token").value == pytest.approx(2.0**6)
    assert one("perplexity", answer, target, level="byte").value == pytest.approx(2.0**3)


def test_a_benchmark_that_cleans_its_text_counts_the_original() -> None:
    target = Target("a cleaned text", ("a cleaned text", " a  cleaned  @-@ text \n"))
    answer = asked(target.text, 7.0, 3)
    entry = catalog.load("scorers", "perplexity")
    found = entry(answer, target, entry.configure({"length_of": "original"}))
    assert found.value == pytest.approx(math.exp(7.0 / 6))  # the harness counts the empty pieces at both ends too
    assert one("perplexity", answer, target).value == pytest.approx(math.exp(7.0 / 3))
    assert figure("bits_per_byte", [answer], [target], length_of="original") == pytest.approx(7.0 / math.log(2) / 23)


def test_of_a_question_the_right_choice_is_measured() -> None:
    answer = Answer(" no", (Option(" yes", -4.0, 1), Option(" no", -1.0, 1)))
    target = Target(" yes", (), (" yes", " no"), (0,))
    assert one("perplexity", answer, target, level="token").value == pytest.approx(math.exp(4.0))
    labels = Answer("no", (Option("yes", -4.0, 1), Option("no", -1.0, 1)))
    assert one("perplexity", labels, Target("no"), level="token").value == pytest.approx(math.exp(1.0))
    assert one("perplexity", labels, Target("maybe")).value is None


def test_what_is_impossible_stays_a_number() -> None:
    found = one("perplexity", asked("word", 1e9, 1), Target("word"))
    assert found.value is not None
    assert found.value > 1e300
    assert math.isfinite(found.value)


@pytest.mark.parametrize("name", ["perplexity", "bits_per_byte", "bits_per_character"])
def test_what_has_no_likelihood_is_left_out(name: str) -> None:
    assert one(name, Answer("text"), Target("text")).value is None
    assert one(name, asked("", 0.0, 0), Target("")).value is None
    with_gaps = figure(name, [*ANSWERS, Answer("x"), asked("", 0.0, 0)], [*TARGETS, Target("x"), Target("")])
    assert with_gaps == pytest.approx(figure(name, ANSWERS, TARGETS))
    assert np.isnan(figure(name, [Answer("x")], [Target("x")]))
    assert catalog.load("scorers", name).optional("LOWER_IS_BETTER")


@pytest.mark.parametrize(("greedy", "value"), [(True, 1.0), (False, 0.0), (None, None)])
def test_greedy_match(greedy: bool | None, value: float | None) -> None:
    answer = asked("word", 1.0, 2, greedy)
    assert greedy_match.score(answer, Target("word"), greedy_match.Config()).value == value


def test_greedy_match_needs_a_likelihood() -> None:
    assert greedy_match.score(Answer("word"), Target("word"), greedy_match.Config()).value is None
