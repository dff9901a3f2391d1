from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.dataset import Example
from luthier.core.engine import Sampling
from luthier.core.errors import EngineError, InputError, NotFoundError
from luthier.core.message import Message, user
from luthier.strategies.self_consistency import Config, prepare, wrap

SEEDED = Sampling(seed=0)
PLAIN = {"of": "zero_shot", "answer": "number"}


def test_the_answer_of_most_samples_wins_however_it_is_written(home: Path, spy: Any) -> None:
    inner = spy(answers={"q": ("the answer is 7", "= $1,000", "The answer is 8", "1000.0", "answer: 1000")})
    (answer,) = wrap(inner, Config(**PLAIN)).generate([user("q")], SEEDED)
    assert answer.text == "1000"
    assert answer.samples == ("7", "1000", "8", "1000.0", "1000")
    assert answer.calls == 5
    assert [s.seed for s in inner.samplings] == [0, 1, 2, 3, 4]
    assert {s.temperature for s in inner.samplings} == {0.7}


def test_of_equal_votes_the_first_drawn_wins(home: Path, spy: Any) -> None:
    inner = spy(answers={"q": ("3", "4", "4", "3")})
    (answer,) = wrap(inner, Config(**PLAIN, samples=4)).generate([user("q")], SEEDED)
    assert answer.text == "3"


def test_a_weighted_vote_counts_probabilities(home: Path, spy: Any) -> None:
    """The fake's mean log-probability is -0.5 a token, so that weights are equal unless they are made unequal here."""

    class Sure(type(spy())):  # type: ignore[misc]
        def generate(self, prompts: Any, sampling: Any, progress: Any = lambda *_: None) -> Any:
            from dataclasses import replace

            made = super().generate(prompts, sampling, progress)
            return [replace(m, logprob=-0.01 if m.text == "9" else -3.0 * len(m.token_ids)) for m in made]

    for vote, winner in (("majority", "3"), ("weighted", "9")):
        inner = Sure(answers={"q": ("3", "9", "3")})
        (answer,) = wrap(inner, Config(**PLAIN, samples=3, vote=vote)).generate([user("q")], SEEDED)
        assert answer.text == winner


def test_samples_of_all_questions_are_asked_together(home: Path, spy: Any) -> None:
    config = Config(of="zero_shot_cot", samples=3)
    prompts = [user("one"), user("two")]
    inner = spy()
    wrap(inner, config).generate(prompts, SEEDED)
    assert [len(batch) for batch in inner.batches] == [2, 2, 2, 2, 2, 2]
    unseeded = spy()
    wrap(unseeded, config).generate(prompts, Sampling())
    assert [len(batch) for batch in unseeded.batches] == [6, 6], "thoughts of all samples, then all answers"


def test_two_requests_in_a_row_draw_different_samples(home: Path, spy: Any) -> None:
    inner = spy()
    engine = wrap(inner, Config(**PLAIN, samples=3))
    for seed in (0, 1):
        engine.generate([user("q")], Sampling(seed=seed, temperature=0.3))
    assert sorted(s.seed for s in inner.samplings) == [0, 1, 2, 3, 4, 5]
    assert {s.temperature for s in inner.samplings} == {0.3}


def test_a_sample_that_fails_is_left_out(home: Path, spy: Any) -> None:
    def refuse(prompt: Any, sampling: Sampling) -> Exception | None:
        return EngineError("out of memory") if sampling.seed == 1 else None

    inner = spy(refuse=refuse, answers={"q": ("5", "6", "6")})
    (answer,) = wrap(inner, Config(**PLAIN, samples=3)).generate([user("q")], SEEDED)
    assert (answer.text, answer.samples, answer.calls) == ("5", ("5", "6"), 2)
    broken = spy(refuse=lambda prompt, sampling: EngineError("out of memory"))
    with pytest.raises(EngineError, match="out of memory"):
        wrap(broken, Config(**PLAIN)).generate([user("q")], SEEDED)


def test_it_reasons_with_examples_where_there_are_some(home: Path) -> None:
    worked = [Example("1", user("q"), "1", meta={"rationale": "one"})]
    bare = [Example("1", user("q"), "1")]
    of = prepare(Config(prompt={"instruction": "x"}), worked).of
    assert isinstance(of, dict)
    assert (of["name"], of["config"]["shots"]) == ("chain_of_thought", 1)
    assert of["config"]["prompt"]["instruction"] == "x"
    ready = prepare(Config(), bare)
    assert isinstance(ready.of, dict)
    assert ready.of["name"] == "zero_shot_cot"
    assert (ready.answer, ready.of["config"]["answer"]) == ("number", "number")
    assert prepare(ready, []) == ready


def test_options_of_the_strategy_that_is_asked(home: Path, spy: Any) -> None:
    of = {"name": "few_shot", "examples": [("a", "1")], "prompt": {"instruction": "own"}}
    inner = spy(answers={"q": "2"})
    wrap(inner, prepare(Config(of=of, answer="number"), [])).generate([user("q")], SEEDED)
    assert inner.asked[0][0] == Message("system", "own")
    assert len(inner.asked[0]) == 4


@pytest.mark.parametrize(
    ("of", "error", "message"),
    [
        ({"shots": 3}, InputError, "self_consistency.of must be a strategy's name"),
        ("fewshot", NotFoundError, "Did you mean 'few_shot'"),
        ({"name": "zero_shot", "shot": 1}, InputError, "unknown key 'shot'"),
    ],
)
def test_bad_input(home: Path, spy: Any, of: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prepare(Config(of=of), [])
    with pytest.raises(error, match=message):
        wrap(spy(), Config(of=of))
