from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core.dataset import Example
from luthier.core.engine import SCORE, ContinuationScore, Sampling, ScoreRequest
from luthier.core.errors import InputError, NotFoundError
from luthier.core.message import Message, user
from luthier.strategies.prompt_ensemble import Config, combined, prepare, wrap

PROMPT = {"instruction": "One of {labels}.", "labels": ["a", "b"]}
TWO = ({"input": "First: {input}"}, {"instruction": "Of {labels}:", "input": "Second: {input}"})


def rows(*table: tuple[float, ...]) -> list[tuple[ContinuationScore, ...]]:
    return [tuple(ContinuationScore(value, 2) for value in row) for row in table]


def test_scores_are_asked_in_one_batch_and_are_the_mean(home: Path, spy: Any) -> None:
    inner = spy()
    engine = wrap(inner, Config(prompt=PROMPT, templates=TWO))
    assert SCORE in engine.info.capabilities
    scored = engine.score([ScoreRequest(user("x"), ("a", "b")), ScoreRequest(user("y"), ("a", "b"))])
    assert len(inner.scored) == 6
    assert [r.prompt for r in inner.scored[:3]] == [
        (Message("system", "One of a, b."), Message("user", "x")),
        (Message("user", "First: x"),),
        (Message("system", "Of a, b:"), Message("user", "Second: x")),
    ]
    alone = spy().score(inner.scored[:3])
    assert [s.logprob for s in scored[0]] == pytest.approx(np.mean([[s.logprob for s in row] for row in alone], axis=0))


def test_the_three_ways_of_putting_scores_together() -> None:
    table = rows((-1.0, -2.0, -9.0), (-1.5, -1.0, -9.0), (-5.0, -4.0, -1.0))
    assert [s.logprob for s in combined(table, "mean")] == pytest.approx([-2.5, -7 / 3, -19 / 3])
    assert [s.logprob for s in combined(table, "max")] == [-1.0, -1.0, -1.0]
    votes = np.exp([s.logprob for s in combined(table, "vote")])
    means = np.exp([-2.5, -7 / 3, -19 / 3])
    assert votes == pytest.approx((1 + means / means.sum() / 2) / 3.5)
    assert votes.sum() == pytest.approx(1.0)
    assert combined(table, "vote")[0].tokens == 2


def test_more_votes_win_over_more_probability() -> None:
    table = rows((-1.0, -1.1), (-1.0, -1.1), (-900.0, -1.0))
    assert combined(table, "vote")[0].logprob > combined(table, "vote")[1].logprob
    assert combined(table, "mean")[0].logprob < combined(table, "mean")[1].logprob


def test_scores_that_are_no_numbers_stay_so() -> None:
    for combine in ("mean", "vote", "max"):
        assert math.isnan(combined(rows((math.nan, -1.0), (-1.0, -2.0)), combine)[0].logprob)  # type: ignore[arg-type]
    nowhere = combined(rows((-math.inf, -math.inf), (-math.inf, -math.inf)), "vote")
    assert all(math.isfinite(s.logprob) for s in nowhere)
    assert combined(rows((-math.inf, -1.0), (-1.0, -2.0)), "mean")[0].logprob == -math.inf


def test_how_likely_one_text_is_has_no_vote() -> None:
    assert combined(rows((-1.0,), (-3.0,)), "vote")[0].logprob == -2.0


def test_written_answers_are_voted_on(home: Path, spy: Any) -> None:
    inner = spy(answers={"First": "A.", "Second": "the answer is a", "x": "b"})
    engine = wrap(inner, Config(prompt=PROMPT, templates=TWO, combine="vote", answer="label"))
    (answer,) = engine.generate([user("x")], Sampling())
    assert (answer.text, answer.samples, answer.calls) == ("a", ("b", "a", "a"), 3)
    assert [len(batch) for batch in inner.batches] == [3]


def test_written_answers_by_their_probabilities(home: Path, spy: Any) -> None:
    class Told(type(spy())):  # type: ignore[misc]
        def generate(self, prompts: Any, sampling: Any, progress: Any = lambda *_: None) -> Any:
            from dataclasses import replace

            made = super().generate(prompts, sampling, progress)
            # probability a token: b 0.5, each a 0.3
            return [replace(m, logprob=math.log(0.5 if m.text == "b" else 0.3) * len(m.token_ids)) for m in made]

    answers = {"First": "a", "Second": "a", "x": "b"}
    for combine, winner in (("mean", "a"), ("max", "b"), ("vote", "a")):
        engine = wrap(Told(answers=answers), Config(prompt=PROMPT, templates=TWO, combine=combine, answer="label"))
        assert engine.generate([user("x")], Sampling())[0].text == winner


def test_without_templates_two_shipped_ones_join_the_tasks_own(home: Path, spy: Any) -> None:
    english = prepare(Config(prompt=PROMPT), [Example("1", user("late parcel"), "a")])
    assert [t["source"].split(" ")[0] for t in english.templates] == ["classify_question@1", "classify_choose@1"]  # type: ignore[index]
    chinese = prepare(Config(prompt=PROMPT), [Example("1", user("我的包裹还没有到，请帮我查一下，谢谢。"), "a")])
    assert "classify_question_zh@1" in chinese.templates[0]["source"]  # type: ignore[index]
    free = prepare(Config(), [Example("1", user("How many?"), "3")])
    assert (free.answer, len(free.templates)) == ("number", 2)
    assert prepare(english, []) == english
    assert len(wrap(spy(), Config(prompt=PROMPT)).prompts) == 3  # type: ignore[attr-defined]


def test_raw_text_and_conversations_are_scored_as_they_are(home: Path, spy: Any) -> None:
    inner = spy()
    turns = (Message("user", "q"), Message("assistant", "a"), Message("user", "r"))
    wrap(inner, Config(prompt=PROMPT)).score([ScoreRequest("raw", (" a",)), ScoreRequest(turns, ("b",))])
    assert inner.scored == [ScoreRequest("raw", (" a",)), ScoreRequest(turns, ("b",))]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"templates": ["classify"], "own": False}, InputError, "two with own: false"),
        ({"templates": [{"instruction": "One of {labels}."}]}, InputError, "asks one prompt twice"),
        ({"templates": ["clasify"]}, NotFoundError, "Did you mean 'classify'"),
        ({"templates": ["step_by_step"]}, InputError, "is a piece of text"),
        ({"templates": [{"inptu": "x"}]}, InputError, "Did you mean 'input'"),
    ],
)
def test_bad_input(home: Path, spy: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wrap(spy(), Config(prompt=PROMPT, **options))
