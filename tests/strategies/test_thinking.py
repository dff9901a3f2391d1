from __future__ import annotations

from typing import Any

import pytest

from luthier.core.engine import SCORE, Generation, Sampling, ScoreRequest
from luthier.core.errors import EngineError, InputError, UnsupportedError
from luthier.core.message import Message, user
from luthier.strategies._thinking import (
    DRAWING,
    Ask,
    Talk,
    Thinking,
    Weigh,
    ask_all,
    close_with,
    follow,
    good,
    mean_logprob,
    only,
    read_off,
    seeded,
    thoughts,
    together,
)

GREEDY = Sampling()


def twice(asked: Any, sampling: Sampling) -> Talk:
    """Asks again with the first reply, a third time when it is a long one."""
    made = [only((yield [Ask(asked, sampling)]))]
    for _ in range(2 if "long" in asked[0].content else 1):
        made.append(only((yield [Ask(follow(asked, made[-1].text, "again"), sampling)])))
    return together(made, made[-1].text, made[0].text)


def test_talks_of_unlike_length_go_on_in_step(spy: Any) -> None:
    inner = spy()
    engine = Thinking(inner, twice, "digest")
    prompts = [user("short"), user("long one"), user("brief")]
    answers = engine.generate(prompts, GREEDY)
    assert [len(batch) for batch in inner.batches] == [3, 3, 1]
    assert [answer.calls for answer in answers] == [2, 3, 2]
    assert [answer.text for answer in answers] == [spy().generate([inner.asked[i]], GREEDY)[0].text for i in (3, 6, 5)]
    assert answers[1].reasoning == spy().generate([prompts[1]], GREEDY)[0].text


def test_costs_are_of_all_calls(spy: Any) -> None:
    inner = spy()
    (answer,) = Thinking(inner, twice, "digest").generate([user("q")], GREEDY)
    assert answer.prompt_tokens == sum(made.prompt_tokens for made in inner.made)
    assert answer.completion_tokens == sum(made.completion_tokens for made in inner.made)
    assert answer.latency_s == pytest.approx(sum(made.latency_s for made in inner.made))
    assert answer.first_token_s == answer.latency_s
    assert answer.token_ids == inner.made[0].token_ids + inner.made[1].token_ids
    assert answer.logprob == pytest.approx(sum(made.logprob for made in inner.made))
    assert mean_logprob(answer) == pytest.approx(-0.5)


def test_a_stream_is_silent_until_the_answer_is_there_and_can_be_left(spy: Any) -> None:
    inner = spy()
    pieces = list(Thinking(inner, twice, "digest").stream(user("q"), GREEDY))
    (answer,) = Thinking(spy(), twice, "digest").generate([user("q")], GREEDY)
    assert [piece.text for piece in pieces if piece.text] == [answer.text]
    assert pieces[-1].generation is not None
    assert (pieces[-1].generation.text, pieces[-1].generation.calls) == (answer.text, 2)
    assert pieces[0].text == ""
    left = spy()
    stream = Thinking(left, twice, "digest").stream(user("q"), GREEDY)
    next(stream)
    stream.close()
    assert len(left.asked) == 1, "nothing more is asked for a reader who left"


def test_an_engine_that_thinks_does_not_score(spy: Any) -> None:
    inner = spy()
    engine = Thinking(inner, twice, "digest")
    assert SCORE in inner.info.capabilities
    assert engine.info == inner.info.with_(
        prompt_digest="digest", capabilities=inner.info.capabilities - {SCORE}, parameters=DRAWING
    )
    with pytest.raises(UnsupportedError, match="cannot score"):
        engine.score([ScoreRequest(user("q"), ("a",))])


def test_a_failed_call_is_its_own_and_no_others(spy: Any) -> None:
    inner = spy(refuse=lambda prompt, sampling: EngineError("down") if "bad" in prompt[0].content else None)
    replies = ask_all(inner, [Ask(user(text), GREEDY) for text in ("one", "bad", "two")])
    assert [isinstance(reply, Generation) for reply in replies] == [True, False, True]
    assert [len(batch) for batch in inner.batches] == [3, 1, 1, 1]
    assert len(good(replies)) == 2
    with pytest.raises(EngineError, match="down"):
        only(replies[1:2])
    with pytest.raises(EngineError, match="down"):
        good(replies[1:2])


def test_an_engine_that_is_down_is_not_asked_again_and_again(spy: Any) -> None:
    inner = spy(refuse=lambda prompt, sampling: EngineError("down"))
    replies = ask_all(inner, [Ask(user(str(i)), GREEDY) for i in range(20)])
    assert len(replies) == 20
    assert len(inner.batches) == 4
    refusing = spy(refuse=lambda prompt, sampling: InputError("too long") if len(prompt[0].content) > 1 else None)
    replies = ask_all(refusing, [Ask(user(text), GREEDY) for text in ("xx", "xx", "xx", "xx", "y")])
    assert isinstance(replies[-1], Generation), "inputs that are refused say nothing about the engine"


def test_what_the_engine_cannot_do_at_all_is_raised_at_once(spy: Any) -> None:
    inner = spy(refuse=lambda prompt, sampling: UnsupportedError("no top_k here"))
    with pytest.raises(UnsupportedError):
        ask_all(inner, [Ask(user("a"), GREEDY), Ask(user("b"), GREEDY)])
    assert len(inner.batches) == 1


def test_weighings_of_all_talks_are_one_batch(spy: Any) -> None:
    class Lengths:
        def __init__(self) -> None:
            self.batches: list[list[tuple[str, str]]] = []
            self.closed = False

        def of(self, items: Any) -> list[float]:
            self.batches.append(list(items))
            return [float(len(text)) for _, text in items]

        def close(self) -> None:
            self.closed = True

    def talk(asked: Any, sampling: Sampling) -> Talk:
        made = good((yield [Ask(asked, seeded(sampling, i, 2, 0.5)) for i in range(2)]))
        values = yield Weigh(tuple((asked[0].content, each.text) for each in made))
        return made[values.index(max(values))]

    lengths = Lengths()
    inner = spy(answers={"q": ("a", "bbb"), "r": ("cc", "d")})
    engine = Thinking(inner, talk, "digest", reward=lengths)
    answers = engine.generate([user("q"), user("r")], Sampling(seed=0))
    assert [answer.text for answer in answers] == ["bbb", "cc"]
    assert lengths.batches == [[("q", "a"), ("q", "bbb"), ("r", "cc"), ("r", "d")]]
    assert [piece.text for piece in engine.stream(user("q"), Sampling(seed=0)) if piece.text] == ["bbb"]
    engine.close()
    assert lengths.closed
    assert inner.closed == 1


def test_each_sample_has_its_own_seed_and_two_requests_share_none() -> None:
    first = [seeded(Sampling(seed=0), i, 4, 0.7) for i in range(4)]
    second = [seeded(Sampling(seed=1), i, 4, 0.7) for i in range(4)]
    assert len({s.seed for s in first + second}) == 8
    assert {s.temperature for s in first} == {0.7}
    assert seeded(Sampling(temperature=0.2), 3, 4, 0.7) == Sampling(temperature=0.2)


def test_thoughts_are_not_ended_by_what_ends_an_answer() -> None:
    asked = Sampling(max_new_tokens=8, temperature=0.5, top_p=0.9, stop=("\n",), seed=3)
    assert thoughts(asked, 100) == Sampling(max_new_tokens=100, temperature=0.5, top_p=0.9, seed=3)
    assert read_off(asked) == Sampling(max_new_tokens=8)


def test_turns() -> None:
    first = (Message("system", "s"), Message("user", "q"))
    assert follow(first, "a", "r") == (*first, Message("assistant", "a"), Message("user", "r"))
    assert close_with(first, "end") == (first[0], Message("user", "q\n\nend"))
