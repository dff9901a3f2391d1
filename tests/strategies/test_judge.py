from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score

from luthier.core.engine import ContinuationScore, Engine, EngineInfo, Generation, Sampling, ScoreRequest
from luthier.core.errors import EngineError, InputError, NotFoundError, UnsupportedError
from luthier.core.message import Conversation, last_user_text
from luthier.core.run import no_progress
from luthier.data.prompts import save_prompt
from luthier.engines._target import EngineTarget
from luthier.engines.fake import Config as FakeConfig
from luthier.engines.fake import open as open_fake
from luthier.strategies._judge import Judge, Mode, Question, agreement

pytestmark = pytest.mark.usefixtures("home")

Write = Callable[[Conversation, Sampling], str]
Weigh = Callable[[Conversation, str], float]


class Scripted:
    """Answers with what ``write`` says of a prompt, and scores with what ``weigh`` says."""

    def __init__(self, write: Write | None = None, weigh: Weigh | None = None) -> None:
        self.write, self.weigh = write, weigh
        self.calls: list[tuple[int, Sampling | None]] = []
        can = {name for name, given in (("generate", write), ("score", weigh)) if given}
        self.info = EngineInfo(model="scripted", engine="test", capabilities=frozenset(can))

    def generate(self, prompts: Sequence[Any], sampling: Sampling, progress: Any = no_progress) -> list[Generation]:
        self.calls.append((len(prompts), sampling))
        assert self.write
        return [Generation(self.write(prompt, sampling), (), (), "stop") for prompt in prompts]

    def score(self, requests: Sequence[ScoreRequest], progress: Any = no_progress) -> list[tuple[Any, ...]]:
        self.calls.append((len(requests), None))
        assert self.weigh
        return [tuple(ContinuationScore(self.weigh(r.prompt, c), 1) for c in r.continuations) for r in requests]  # type: ignore[arg-type]


def judge(write: Write | None = None, *, weigh: Weigh | None = None, **options: Any) -> tuple[Judge, Scripted]:
    engine = Scripted(write, weigh)
    return Judge(engine, **options), engine  # type: ignore[arg-type]


def items(count: int) -> list[tuple[Question, str]]:
    return [(Question(f"question {i}"), f"answer {i}.") for i in range(count)]


def test_the_prompt_carries_rubric_scale_reference_and_answer_and_nothing_in_them_is_interpreted() -> None:
    seen: list[Conversation] = []
    grader, _ = judge(lambda prompt, _: seen.append(prompt) or "[[3]]", rubric="Is it {low} kind?", scale=(1, 5))  # type: ignore[func-returns-value]
    given = Question("What is {rubric}?", reference="A {high} thing")
    assert grader.grade([(given, "Say {form}")])[0].value == 3.0
    system, asked = seen[0][0].content, seen[0][1].content
    assert "Is it {low} kind?" in system
    assert "from 1, the worst, to 5" in system
    assert [part in asked for part in ("What is {rubric}?", "A {high} thing", "Say {form}")] == [True] * 3
    grader.grade([(Question("Q"), "A")])
    assert "<reference>" not in seen[1][1].content


def test_a_rubric_is_a_text_or_the_name_of_one_in_the_prompt_catalogue(home: Path) -> None:
    save_prompt("rubric_brief", {"about": "Brevity.", "text": "The answer is brief."})
    seen: list[str] = []
    for rubric in ("rubric_brief", "Brief or not"):
        grader, _ = judge(lambda prompt, _: seen.append(prompt[0].content) or "[[3]]", rubric=rubric)  # type: ignore[func-returns-value]
        grader.grade(items(1))
    assert "The answer is brief." in seen[0]
    assert "Rubric: Brief or not" in seen[1]
    with pytest.raises(NotFoundError, match="rubric_brief"):
        judge(lambda prompt, _: "", rubric="rubric_brif")


def test_grades_come_in_order_from_one_batch() -> None:
    grader, engine = judge(lambda prompt, _: f"Rating: [[{int(last_user_text(prompt).split('answer ')[1][0]) + 1}]]")
    grades = grader.grade(items(5))
    assert [grade.value for grade in grades] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert {grade.attempts for grade in grades} == {1}
    assert [size for size, _ in engine.calls] == [5]
    assert grader.counts == {"asked": 5, "retried": 0, "unparsable": 0}


def test_nonsense_is_asked_again_with_another_seed_and_then_counted() -> None:
    def write(prompt: Conversation, sampling: Sampling) -> str:
        if "answer 0" in last_user_text(prompt):
            return "quack"
        return "[[5]]" if sampling.seed == 1 else "quack"

    log: list[Any] = []
    grader, engine = judge(write, retries=2, log=log.append)
    lost, found = grader.grade(items(2))
    assert (lost.value, lost.attempts, lost.reply) == (None, 3, "quack")
    assert (found.value, found.attempts) == (5.0, 2)
    assert [(s.seed, s.temperature > 0) for _, s in engine.calls if s] == [(0, False), (1, True), (2, True)]
    assert grader.counts == {"asked": 5, "retried": 3, "unparsable": 1}
    assert [(r["attempt"], r["reply"], r["value"]) for r in log][:3] == [(0, "quack", None)] * 2 + [(1, "quack", None)]
    assert log[0]["prompt"][1]["content"].startswith("<question>\nquestion 0")
    json.dumps(log)


def test_an_item_that_fails_does_not_take_the_others_with_it() -> None:
    def write(prompt: Conversation, sampling: Sampling) -> str:
        text = last_user_text(prompt)
        if "answer 1" in text:
            raise EngineError("the endpoint answered 500")
        if "answer 2" in text:
            raise InputError("the prompt has 9000 tokens; the model takes 8192")
        return "[[8]]"

    grader, _ = judge(write, retries=1)
    grades = grader.grade(items(4))
    assert [grade.value for grade in grades] == [8.0, None, None, 8.0]
    assert "500" in grades[1].reason
    assert "9000 tokens" in grades[2].reason
    assert [grade.attempts for grade in grades] == [1, 2, 1, 1]  # what is too long stays too long
    assert grader.counts["failed"] == 3
    assert grader.counts["unparsable"] == 2


def test_a_judge_that_dies_midway_is_not_asked_for_ever_and_what_it_said_is_kept() -> None:
    alive = iter(range(32))

    def write(prompt: Conversation, sampling: Sampling) -> str:
        if next(alive, None) is None:
            raise EngineError("connection refused")
        return "[[6]]"

    grader, engine = judge(write, retries=2)
    grades = grader.grade(items(200))
    assert [grade.value for grade in grades[:32]] == [6.0] * 32
    assert all(grade.value is None for grade in grades[32:])
    assert "not asked" in grades[-1].reason
    assert len(engine.calls) < 32
    assert grader.counts["unparsable"] == 168
    alive = iter(range(10))
    assert grader.grade(items(1))[0].value == 6.0  # back again


def test_a_reply_that_does_not_come_is_given_up_and_counted() -> None:
    hold = threading.Event()

    def write(prompt: Conversation, sampling: Sampling) -> str:
        if "answer 1" in last_user_text(prompt):
            hold.wait(20)
        return "[[7]]"

    grader, _ = judge(write, retries=1, timeout_s=0.05)
    grades = grader.grade(items(3))
    hold.set()
    assert [grade.value for grade in grades] == [7.0, None, 7.0]
    assert "within 0.05 s" in grades[1].reason
    assert grader.counts["timed_out"] == 2


def test_errors_that_no_item_is_to_blame_for_are_raised() -> None:
    def write(prompt: Conversation, sampling: Sampling) -> str:
        raise NotFoundError("the endpoint has no model 'x'")

    with pytest.raises(NotFoundError):
        judge(write)[0].grade(items(2))
    with pytest.raises(NotFoundError):
        judge(write, timeout_s=5)[0].grade(items(2))
    with pytest.raises(UnsupportedError, match="cannot generate"):
        judge(weigh=lambda prompt, text: 0.0)
    with pytest.raises(UnsupportedError, match="cannot score"):
        judge(lambda prompt, sampling: "", mode="score")
    with pytest.raises(InputError, match="scale"):
        judge(lambda prompt, sampling: "", scale=(5, 5))
    with pytest.raises(InputError, match="101"):
        judge(weigh=lambda prompt, text: 0.0, mode="score", scale=(0, 1000))


def test_mode_score_is_the_mean_of_the_scale_under_the_judges_probabilities() -> None:
    weights = {"1": 0.1, "2": 0.2, "3": 0.3, "4": 0.2, "5": 0.05}
    grader, engine = judge(weigh=lambda prompt, text: math.log(weights[text]) - 3.0, mode="score", scale=(1, 5))
    grade = grader.grade(items(3))[2]
    expected = sum(int(text) * weight for text, weight in weights.items()) / sum(weights.values())
    assert grade.value == pytest.approx(expected)
    assert len(engine.calls) == 1
    with_nan, _ = judge(weigh=lambda prompt, text: math.nan, mode="score")
    assert with_nan.grade(items(1))[0].value is None


@pytest.mark.parametrize("mode", ["write", "score"])
@pytest.mark.parametrize(
    ("taste", "winner", "consistent"),
    [("better", "second", True), ("position", "tie", False), ("none", "tie", True)],
)
def test_pairs_are_shown_in_both_orders(taste: str, winner: str, consistent: bool, mode: Mode) -> None:
    def choose(prompt: Conversation) -> str:
        text = last_user_text(prompt)
        if taste == "none":
            return "tie"
        return "A" if taste == "position" or text.index("good") < text.index("bad") else "B"

    comparer, _ = judge(
        lambda prompt, _: f'{{"winner": "{choose(prompt)}"}}',
        weigh=lambda prompt, text: -0.1 if text == choose(prompt) else -3.0,
        mode=mode,
    )
    preference = comparer.compare([(Question("Q"), "bad", "good")])[0]
    assert (preference.winner, preference.consistent) == (winner, consistent)
    assert preference.attempts == 2
    if taste == "position":
        assert (preference.forward, preference.backward) == ("first", "second")
    once = comparer.compare([(Question("Q"), "bad", "good")], swap=False)[0]
    assert once.backward is None
    assert once.winner == once.forward
    assert once.consistent
    assert once.attempts == 1


def test_probabilities_of_both_orders_are_added_so_that_a_liking_for_one_place_cancels() -> None:
    def weigh(prompt: Conversation, text: str) -> float:
        text_first = last_user_text(prompt).index("good") < last_user_text(prompt).index("bad")
        return math.log({"A": 0.9 if text_first else 0.7, "B": 0.09 if text_first else 0.29, "tie": 0.01}[text])

    comparer, _ = judge(weigh=weigh, mode="score")
    preference = comparer.compare([(Question("Q"), "bad", "good")])[0]
    assert (preference.forward, preference.backward) == ("first", "second")  # A both times
    assert (preference.winner, preference.consistent) == ("second", False)


def test_a_pair_with_one_unreadable_order_has_no_winner() -> None:
    def write(prompt: Conversation, sampling: Sampling) -> str:
        text = last_user_text(prompt)
        return "[[A]]" if text.index("good") < text.index("bad") else "hm"

    comparer, _ = judge(write, retries=0)
    preference = comparer.compare([(Question("Q"), "good", "bad")])[0]
    assert (preference.winner, preference.forward, preference.backward) == (None, "first", None)
    assert not preference.consistent
    assert comparer.counts["unparsable"] == 1


def test_any_engine_can_judge() -> None:
    fake: Engine = open_fake(EngineTarget("fake", None, None, None), FakeConfig())
    values = [grade.value for grade in Judge(fake, mode="score").grade(items(4))]
    assert all(value is not None and 1 <= value <= 10 for value in values)
    assert values == [grade.value for grade in Judge(fake, mode="score").grade(items(4))]
    assert {grade.value for grade in Judge(fake, retries=1).grade(items(4))} == {None}  # it writes words only


def test_agreement_is_scikit_learns_kappa_and_counts_what_could_not_be_read() -> None:
    human = ["a", "b", "tie", "a", "b", "a"]
    judged = ["a", "b", "a", "a", None, "b"]
    said = agreement(human, judged)
    assert said["kappa"] == pytest.approx(cohen_kappa_score(["a", "b", "tie", "a", "a"], ["a", "b", "a", "a", "b"]))
    assert (said["accuracy"], said["n"], said["unparsable"]) == (0.6, 5, 1)
    grades = agreement([1, 5, 3, 2], [2.0, 5.0, 3.0, 1.0], weights="quadratic")
    assert grades["kappa"] == pytest.approx(cohen_kappa_score([1, 5, 3, 2], [2, 5, 3, 1], weights="quadratic"))


def test_agreement_is_none_where_it_is_not_defined() -> None:
    assert agreement(["a", "a"], ["a", "a"]) == {"kappa": None, "accuracy": 1.0, "n": 2, "unparsable": 0}
    assert agreement(["a"], [None]) == {"kappa": None, "accuracy": None, "n": 0, "unparsable": 1}
    with pytest.raises(InputError, match="equally long"):
        agreement(["a"], [])
