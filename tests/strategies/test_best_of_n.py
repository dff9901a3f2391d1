from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from luthier.core.engine import ContinuationScore, Sampling
from luthier.core.errors import EngineError, InputError, NotFoundError, UnsupportedError
from luthier.core.message import Message, Tool, user
from luthier.engines.fake import Config as FakeConfig
from luthier.engines.fake import FakeEngine
from luthier.strategies import _load
from luthier.strategies._build import wrap_strategy
from luthier.strategies.best_of_n import Config, prepare, wrap

SEEDED = Sampling(seed=0)
ANSWERS = {"q": ("short", "a longer one", "the longest of them all")}


class Graded(FakeEngine):
    """Likes long answers: as a judge, as a yes-or-no model, or with a head."""

    def __init__(self, labels: tuple[str, ...] = (), reply: str = "") -> None:
        super().__init__("grader", FakeConfig(labels=labels))
        self.seen: list[Any] = []
        self.closed = 0
        self.reply = reply

    def score(self, requests: Any, progress: Any = lambda *_: None) -> Any:
        self.seen.append(list(requests))
        rows = []
        for request in requests:
            long = request.prompt[0].content.count(" ") / 100
            rows.append(tuple(ContinuationScore(-1.0 + long * (text == "yes"), 1) for text in request.continuations))
        return rows

    def generate(self, prompts: Any, sampling: Any, progress: Any = lambda *_: None) -> Any:
        from dataclasses import replace

        self.seen.append(list(prompts))
        made = super().generate(prompts, sampling)
        texts = [self.reply or str(1 + ("longer" in p[-1].content) + 2 * ("longest" in p[-1].content)) for p in prompts]
        return [replace(m, text=f'{{"reason": "r", "rating": {t}}}') for m, t in zip(made, texts, strict=True)]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def graded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a Graded in the place of what is loaded under the name ``grader``."""

    def install(**options: Any) -> Graded:
        model = Graded(**options)
        monkeypatch.setattr(_load, "load", lambda name, **_: model)
        return model

    return install


def test_the_likeliest_answer_a_token_is_kept(home: Path, spy: Any) -> None:
    class Told(type(spy())):  # type: ignore[misc]
        def generate(self, prompts: Any, sampling: Any, progress: Any = lambda *_: None) -> Any:
            from dataclasses import replace

            made = super().generate(prompts, sampling, progress)
            # the whole of "a longer one" is less likely than "short", each of its tokens is more
            sums = {"short": -1.0, "a longer one": -1.5, "the longest of them all": -20.0}
            return [replace(m, logprob=sums.get(m.text)) for m in made]

    (answer,) = wrap(Told(answers=ANSWERS), Config(samples=3)).generate([user("q")], SEEDED)
    assert (answer.text, answer.calls, answer.samples) == ("a longer one", 3, ANSWERS["q"])
    with pytest.raises(UnsupportedError, match="does not say how likely"):
        wrap(Told(answers={"q": ("x", "y")}), Config(samples=2)).generate([user("q")], SEEDED)


@pytest.mark.parametrize("labels", [("no", "yes"), ()])
def test_a_reward_model_reads_question_and_answer(home: Path, spy: Any, graded: Any, labels: tuple[str, ...]) -> None:
    model = graded(labels=labels)
    engine = wrap(spy(answers=ANSWERS), Config(samples=3, by="reward", judge="grader"))
    answers = engine.generate([user("q"), user("q")], SEEDED)
    assert [answer.text for answer in answers] == ["the longest of them all"] * 2
    (batch,) = model.seen
    assert len(batch) == 6, "all answers to all questions are one batch"
    assert batch[0].continuations == (("yes",) if labels else ("yes", "no"))
    if labels:
        assert batch[0].prompt == user("q\n\nshort")
    else:
        assert "Proposed answer:\nshort\n" in batch[0].prompt[0].content
    engine.close()
    assert model.closed == 1


def test_a_judge_grades_and_what_it_cannot_grade_loses(home: Path, spy: Any, graded: Any) -> None:
    model = graded()
    config = Config(samples=3, by="judge", judge="grader", rubric="Longer is better, they say.")
    (answer,) = wrap(spy(answers=ANSWERS), config).generate([user("q")], SEEDED)
    assert answer.text == "the longest of them all"
    assert "Longer is better, they say." in model.seen[0][0][0].content
    graded(reply='"no idea"')
    (answer,) = wrap(spy(answers=ANSWERS), config).generate([user("q")], SEEDED)
    assert answer.text == "short", "when no grade can be read, the first drawn is kept"


def test_a_rubric_of_the_catalogue_travels_in_the_config(home: Path) -> None:
    config = prepare(Config(by="judge", judge="grader"), [])
    assert config.texts["rubric"]["source"].startswith("rubric_quality@1 ")
    assert prepare(Config(by="judge", judge="grader", rubric="Be kind."), []).texts == {}
    assert set(prepare(Config(by="reward", judge="grader"), []).texts) == {"ask", "ask_zh"}
    assert isinstance(config.of, dict)
    assert config.of["name"] == "zero_shot"
    assert prepare(config, []) == config


def test_conversations_of_several_turns_are_answered_so_too(home: Path, spy: Any) -> None:
    inner = spy()
    turns = (Message("user", "one"), Message("assistant", "two"), Message("user", "three"))
    answers = wrap(inner, Config(samples=2)).generate([turns, "raw text"], SEEDED)
    assert inner.asked == [turns, "raw text"] * 2
    assert [answer.calls for answer in answers] == [2, 2]


def test_log_probabilities_are_asked_for_where_an_engine_gives_them_only_then(home: Path, spy: Any) -> None:
    class OnDemand(type(spy())):  # type: ignore[misc]
        def generate(self, prompts: Any, sampling: Any, progress: Any = lambda *_: None) -> Any:
            from dataclasses import replace

            made = super().generate(prompts, sampling, progress)
            return made if sampling.logprobs is not None else [replace(each, logprob=None) for each in made]

    for engine in (
        wrap(OnDemand(answers=ANSWERS), Config(samples=2)),
        wrap(OnDemand(answers=ANSWERS), Config(samples=2, of="zero_shot_cot")),
        wrap_strategy(
            OnDemand(answers=ANSWERS), "self_consistency", {"samples": 2, "vote": "weighted", "of": "zero_shot"}
        ),
        wrap_strategy(OnDemand(answers=ANSWERS), "prompt_ensemble", {"combine": "mean"}),
    ):
        (answer,) = engine.generate([user("q")], SEEDED)
        assert answer.logprob is not None
        assert answer.tokens == ()


def test_calls_and_tokens_of_the_best_answer_are_kept_and_streamed(home: Path, spy: Any) -> None:
    told = {"arguments": {"n": 1}, "name": "look"}
    engine = wrap(spy(tool_calls={"q": told}), Config(samples=2))
    sampling = Sampling(seed=0, tools=(Tool("look"),), logprobs=1)
    (answer,) = engine.generate([user("q")], sampling)
    assert [call.name for call in answer.tool_calls] == ["look"]
    assert [d.tool_calls for d in engine.stream(user("q"), sampling) if d.tool_calls] == [answer.tool_calls]
    texts = list(engine.stream(user("other"), sampling))
    assert b"".join(t.data for d in texts for t in d.tokens).decode() == "".join(d.text for d in texts)


def test_a_sample_that_fails_is_left_out(home: Path, spy: Any) -> None:
    inner = spy(refuse=lambda p, s: EngineError("down") if s.seed in (0, 2) else None, answers=ANSWERS)
    (answer,) = wrap(inner, Config(samples=3)).generate([user("q")], SEEDED)
    assert (answer.text, answer.samples) == ("a longer one", ("a longer one",))


def test_the_reward_is_the_share_of_the_label(home: Path) -> None:
    from luthier.strategies._reward import _number, _share

    assert _share(math.log(0.2), math.log(0.6)) == pytest.approx(math.log(0.25))
    assert _share(-1e5, -1.0) < -600
    assert _share(-math.inf, -1.0) == -math.inf
    assert _number(math.nan) == -math.inf


def test_who_judges_is_in_the_digest(home: Path, spy: Any, graded: Any) -> None:
    graded()
    configs = [
        Config(),
        Config(samples=5),
        Config(by="reward", judge="grader"),
        Config(by="reward", judge="grader", label="good"),
        Config(by="judge", judge="grader"),
        Config(by="judge", judge="grader", rubric="Be kind."),
        Config(of="zero_shot_cot"),
    ]
    digests = {wrap(spy(), config).info.prompt_digest for config in configs}
    assert len(digests) == len(configs)


def test_bad_input(home: Path, spy: Any, graded: Any) -> None:
    for call in (lambda c: prepare(c, []), lambda c: wrap(spy(), c)):
        with pytest.raises(InputError, match="must name the model that chooses"):
            call(Config(by="judge"))
        with pytest.raises(InputError, match="got by: logprob"):
            call(Config(judge="x"))
    with pytest.raises(NotFoundError, match="'nobody'"):
        wrap(spy(), Config(by="reward", judge="nobody"))
    model = graded(labels=("bad", "good"))
    with pytest.raises(InputError, match="must be a label of grader; got 'yes'"):
        wrap(spy(), Config(by="reward", judge="grader"))
    assert model.closed == 1
