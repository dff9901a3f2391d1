from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from luthier.scorers import multiple_choice, probability_mass
from luthier.scorers._score import Answer, Option, Target
from luthier.scorers.multiple_choice import Config, score

TEXTS = (" yes", " 也许不是", " no, not at all")
TOKENS = (1, 4, 5)


def asked(*logprobs: float, texts: Sequence[str] = TEXTS, correct: Sequence[int] = (0,)) -> tuple[Answer, Target]:
    options = tuple(Option(t, lp, n) for t, lp, n in zip(texts, logprobs, TOKENS, strict=False))
    target = Target(texts[correct[0]] if correct else "", (), tuple(texts), tuple(correct))
    return Answer("", options), target


@pytest.mark.parametrize(
    ("normalise", "lengths"),
    [("none", (1, 1, 1)), ("characters", (3, 4, 14)), ("bytes", (3, 12, 14)), ("tokens", (1, 4, 5))],
)
@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_the_harnesss(normalise: str, lengths: tuple[int, ...], seed: int) -> None:
    """acc, acc_norm and acc_bytes of lm-evaluation-harness: argmax of logprob / length of the choice without the joining space."""
    logprobs = -np.random.default_rng(seed).uniform(1, 9, 3) * np.sqrt(lengths)
    answer, target = asked(*logprobs.tolist())
    best = int(np.argmax(logprobs / np.array(lengths, dtype=float)))
    found = score(answer, target, Config.model_validate({"normalise": normalise}))
    assert found.detail["chosen"] == best
    assert found.value == float(best == 0)


def test_ties_take_the_first_and_say_so() -> None:
    found = score(*asked(-2.0, -1.0, -1.0, correct=(1,)), Config())
    assert (found.value, found.detail["tie"]) == (1.0, True)
    assert score(*asked(-2.0, -1.0, -1.0, correct=(2,)), Config()).value == 0.0
    assert "tie" not in score(*asked(-2.0, -1.0, -3.0), Config()).detail


def test_several_choices_may_be_right() -> None:
    assert score(*asked(-3.0, -1.0, -2.0, correct=(0, 1)), Config()).value == 1.0


def test_a_label_task_has_its_right_label_in_the_target() -> None:
    answer = Answer("b", (Option("a", -3.0, 1), Option("b", -1.0, 1)))
    assert score(answer, Target("b"), Config()).value == 1.0
    assert score(answer, Target("a"), Config()).value == 0.0
    assert score(answer, Target("c"), Config()).value is None


def test_choices_with_one_text_after_different_prompts() -> None:
    """Winogrande: the prompts differ, the continuation does not."""
    texts = (" was late.", " was late.")
    assert score(*asked(-1.0, -2.0, texts=texts, correct=(0,)), Config()).value == 1.0
    assert score(*asked(-1.0, -2.0, texts=texts, correct=(1,)), Config()).value == 0.0
    assert score(Answer("was late."), Target(" was late.", (), texts, (0,)), Config()).value is None


@pytest.mark.parametrize(
    ("text", "value"), [("yes", 1.0), (" yes", 1.0), ("也许不是", 0.0), ("perhaps", 0.0), ("", 0.0)]
)
def test_an_engine_without_log_probabilities_writes_its_choice(text: str, value: float) -> None:
    assert score(Answer(text), asked(-1.0, -1.0, -1.0)[1], Config()).value == value
    assert score(Answer(text), Target("yes"), Config()).value == value


def test_places_beyond_the_choices_are_not_right() -> None:
    assert score(*asked(-1.0, -2.0, -3.0, correct=(0, 9)), Config()).value == 1.0
    answer, target = asked(-1.0, -2.0, -3.0)
    assert score(answer, Target("", (), target.choices, (9,)), Config()).value is None


def mass(answer: Answer, target: Target) -> float | None:
    return probability_mass.score(answer, target, probability_mass.Config()).value


def test_probability_mass_is_truthfulqas() -> None:
    logprobs = np.array([-3.0, -1.0, -2.5])
    weights = np.exp(logprobs)
    assert mass(*asked(*logprobs, correct=(0, 2))) == pytest.approx((weights[0] + weights[2]) / weights.sum())
    assert mass(*asked(-1e9, -1e9, -1e9, correct=(0,))) == pytest.approx(1 / 3)
    assert mass(*asked(-2000.0, -2001.0, -5000.0)) == pytest.approx(1 / (1 + np.exp(-1)))


def test_probability_mass_needs_log_probabilities() -> None:
    assert mass(Answer("yes"), asked(-1.0, -1.0, -1.0)[1]) is None
    answer, target = asked(-1.0, -2.0, -3.0)
    assert mass(answer, Target("", (), target.choices, (9,))) is None
    assert mass(asked(-np.inf, -np.inf)[0], target) is None


def test_the_option_is_checked() -> None:
    with pytest.raises(ValueError, match="characters"):
        multiple_choice.Config.model_validate({"normalise": "letters"})
