"""The fake engine keeps the whole engine contract, deterministically."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

from luthier.core import catalog
from luthier.core.engine import (
    EMBED,
    GENERATE,
    SCORE,
    STREAM,
    Constraint,
    Engine,
    Generation,
    Sampling,
    ScoreRequest,
    answer_whole,
    check_health,
    require_parameters,
)
from luthier.core.errors import EngineError, InputError
from luthier.core.message import Image, Message, Prompt, Tool, user
from luthier.engines._fake_words import word_id


def make(name: str = "fake", **options: Any) -> Engine:
    entry = catalog.load("engines", "fake")
    engine: Engine = entry(SimpleNamespace(name=name, record=None, base=None, store=None), entry.configure(options))
    return engine


def test_it_is_an_engine_that_can_everything() -> None:
    engine = make()
    assert isinstance(engine, Engine)
    assert engine.info.capabilities == {GENERATE, STREAM, SCORE, EMBED}
    engine.close()
    engine.close()


def test_equal_requests_get_equal_answers_in_another_process() -> None:
    text = make().generate([user("Where is my parcel?")], Sampling())[0].text
    code = (
        "from types import SimpleNamespace as N; from luthier.core.engine import Sampling; "
        "from luthier.core.message import user; from luthier.engines import fake; "
        "print(fake.open(N(name='fake'), fake.Config()).generate([user('Where is my parcel?')], Sampling())[0].text)"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == text


def test_prompt_and_seed_change_the_answer_greedy_ignores_the_seed() -> None:
    engine = make()
    prompts = [user(f"question {i}") for i in range(20)]
    greedy = [g.text for g in engine.generate(prompts, Sampling())]
    assert len(set(greedy)) == 20
    assert greedy == [g.text for g in engine.generate(prompts, Sampling(seed=5))]
    drawn = [[g.text for g in engine.generate(prompts, Sampling(temperature=1.0, seed=s))] for s in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_labels_bound_the_answers_and_follow_the_text() -> None:
    engine = make("fake:billing,delivery")
    assert engine.info.labels == ("billing", "delivery")
    answers = engine.generate([user("a delivery question"), user("my billing address")], Sampling())
    assert [a.text for a in answers] == ["delivery", "billing"]
    everything = engine.generate([user(str(i)) for i in range(30)], Sampling(temperature=1.0, seed=3))
    assert {a.text for a in everything} == {"billing", "delivery"}


def test_generate_agrees_with_score_on_labels() -> None:
    engine = make(labels=["a", "b", "c"])
    prompts = [user(f"text {i}") for i in range(25)]
    scored = engine.score([ScoreRequest(p, ("a", "b", "c")) for p in prompts])
    best = ["abc"[int(np.argmax([s.logprob for s in row]))] for row in scored]
    assert best == [g.text for g in engine.generate(prompts, Sampling())]
    assert all(s.logprob < 0 and s.tokens == 2 for row in scored for s in row)  # one word and the end of the turn


def test_mapped_answers_win_and_the_longest_key_wins() -> None:
    engine = make(answers={"refund": "Refunds take a day.", "refund policy": "See page 4."}, labels=["x"])
    prompts = [user("the refund policy?"), user("my refund"), user("other")]
    assert [g.text for g in engine.generate(prompts, Sampling())] == ["See page 4.", "Refunds take a day.", "x"]
    assert engine.info.labels == ()


def test_length_stop_and_token_counts() -> None:
    engine = make(answers={"q": "one two  three STOP five "})
    whole = engine.generate([user("q")], Sampling())[0]
    assert (whole.finish_reason, whole.completion_tokens, len(whole.token_ids)) == ("stop", 5, 5)
    cut = engine.generate([user("q")], Sampling(max_new_tokens=2))[0]
    assert (cut.text, cut.finish_reason, cut.completion_tokens) == ("one two", "length", 2)
    stopped = engine.generate([user("q")], Sampling(stop=("STOP", "five")))[0]
    assert (stopped.text, stopped.finish_reason) == ("one two  three ", "stop")
    assert whole.prompt_tokens == len(whole.prompt_token_ids) == 2  # "user: q"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(max_new_tokens=3), Sampling(stop=("three",))])
def test_the_stream_is_the_answer(sampling: Sampling) -> None:
    engine = make(answers={"q": "one two  three\nfour"})
    pieces = list(engine.stream(user("q"), sampling))
    answer = engine.generate([user("q")], sampling)[0]
    assert "".join(p.text for p in pieces) == answer.text
    assert [p.generation for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    last = pieces[-1].generation
    assert last is not None
    assert (last.token_ids, last.finish_reason) == (answer.token_ids, answer.finish_reason)
    assert 0 <= last.first_token_s <= last.latency_s


def test_embeddings_are_unit_vectors_and_like_texts_are_near() -> None:
    vectors = make(width=128).embed(["my parcel is late", "my parcel is very late", "sing a song", ""])
    assert vectors.shape == (4, 128)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="at most 3"):
        make(context_length=3).generate([user("one two three four")], Sampling())
    with pytest.raises(InputError, match="at most 3"):
        make(context_length=3).stream(user("one two three four"), Sampling())
    with pytest.raises(InputError, match="user turn"):
        make().generate([(Message("system", "hello"),)], Sampling())
    with pytest.raises(InputError, match="latency_s"):
        make(latencys=1)


def test_progress_counts_every_item() -> None:
    seen: list[tuple[str, int, int]] = []
    make().generate([user("a"), user("b")], Sampling(), lambda *args: seen.append(args))
    make().score([ScoreRequest("a", ("b",))], lambda *args: seen.append(args))
    assert seen == [("generate", 1, 2), ("generate", 2, 2), ("score", 1, 1)]


LOOK_UP = Tool(
    "look_up",
    parameters='{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 3}}}',
)
MAIL = Tool("mail")
QUESTION = user("q")


def ask(sampling: Sampling, prompt: Prompt = QUESTION, **options: Any) -> Generation:
    engine = make(**options)
    require_parameters(engine.info, [prompt], sampling)
    (answer,) = engine.generate([prompt], sampling)
    streamed = list(engine.stream(prompt, sampling))
    last = streamed[-1].generation
    assert last is not None
    for field in ("text", "token_ids", "tokens", "tool_calls", "finish_reason", "completion_tokens"):
        assert getattr(last, field) == getattr(answer, field)
    assert "".join(delta.text for delta in streamed) == answer.text
    assert tuple(token for delta in streamed for token in delta.tokens) == answer.tokens
    assert tuple(call for delta in streamed for call in delta.tool_calls) == answer.tool_calls
    return answer


def test_logprobs_belong_to_the_text() -> None:
    answer = ask(Sampling(logprobs=3), answers={"q": " one two\nthree "})
    assert b"".join(token.data for token in answer.tokens) == b" one two\nthree"
    assert answer.logprob == pytest.approx(sum(token.logprob for token in answer.tokens))
    for token in answer.tokens:
        assert token.top[0][0] == token.data
        assert len(dict(token.top)) == 3
        assert [value for _, value in token.top] == sorted((value for _, value in token.top), reverse=True)
        assert sum(math.exp(value) for _, value in token.top) < 1.0
    assert all(token.top == () for token in ask(Sampling(logprobs=0)).tokens)
    assert ask(Sampling()).tokens == ()


def test_a_banned_word_is_not_said_and_a_wished_one_is() -> None:
    plain = ask(Sampling()).text.split()
    banned = ask(Sampling(logit_bias=((word_id(plain[0]), -100.0),))).text.split()
    assert plain[0] not in banned
    assert [word for word in plain if word != plain[0]] == [
        b for b, p in zip(banned, plain, strict=True) if p != plain[0]
    ]
    assert set(ask(Sampling(logit_bias=((word_id("parcel"), 100.0),))).text.split()) == {"parcel"}
    assert ask(Sampling(logit_bias=((word_id("two"), -100.0),)), answers={"q": "one two three"}).text == "one three"


def test_penalties_forbid_repetition_and_min_p_changes_the_draw() -> None:
    prompts = [user(f"question {i}") for i in range(30)]
    engine = make()
    repeats = [len(a.text.split()) - len(set(a.text.split())) for a in engine.generate(prompts, Sampling())]
    assert sum(repeats) > 0
    for sampling in (Sampling(presence_penalty=2.0), Sampling(frequency_penalty=2.0)):
        less = [len(a.text.split()) - len(set(a.text.split())) for a in engine.generate(prompts, sampling)]
        assert sum(less) < sum(repeats)
    drawn = [ask(Sampling(temperature=1.0, seed=1, min_p=value)).text for value in (0.0, 0.1, 0.2)]
    assert len(set(drawn)) == 3


SCHEMA = {
    "type": "object",
    "required": ["name", "sort", "parts"],
    "properties": {
        "name": {"type": "string", "minLength": 6},
        "sort": {"enum": ["a", "b"]},
        "parts": {"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/part"}},
    },
    "$defs": {"part": {"anyOf": [{"type": "number", "exclusiveMinimum": 4}, {"type": "null"}]}},
}


def test_a_constrained_answer_is_valid() -> None:
    assert isinstance(json.loads(ask(Sampling(constraint=Constraint("json"))).text), dict)
    schema = Sampling(constraint=Constraint("json_schema", json.dumps(SCHEMA)))
    jsonschema.validate(json.loads(ask(schema).text), SCHEMA)
    told = '{"name": "abcdefg", "sort": "b", "parts": [5, null]}'
    assert ask(schema, answers={"q": told}).text == told
    choice = Sampling(constraint=Constraint("choice", '["yes", "no"]'))
    assert ask(choice).text in ("yes", "no")
    assert ask(choice, answers={"q": "no"}).text == "no"
    pattern = Sampling(constraint=Constraint("regex", "[a-c]{2,5}(-[0-9]+)?x"))
    assert ask(pattern).text == "aax"
    assert ask(pattern, answers={"q": "cab-12x"}).text == "cab-12x"
    nested = Sampling(constraint=Constraint("grammar", 'root ::= "<" (item | root)+ ">"\nitem ::= [x-z] "y"'))
    assert re.fullmatch("<[x-z]y>", ask(nested).text)
    for bad in (
        Constraint("json_schema", '{"type": 3}'),
        Constraint("grammar", "root ::= ("),
        Constraint("regex", "("),
        Constraint("grammar", 'root ::= "a" root'),
    ):
        with pytest.raises(InputError):
            ask(Sampling(constraint=bad))


def test_tools_are_called_when_told_or_forced() -> None:
    told = {"parcel": {"name": "look_up", "arguments": {"n": 7}}}
    tools = (LOOK_UP, MAIL)
    called = ask(Sampling(tools=tools), user("my parcel"), tool_calls=told)
    assert [(c.name, json.loads(c.arguments)) for c in called.tool_calls] == [("look_up", {"n": 7})]
    assert (called.text, called.finish_reason) == ("", "tool_calls")
    assert called.completion_tokens > 0
    for sampling in (Sampling(tools=tools, tool_choice="none"), Sampling(tools=(MAIL,)), Sampling()):
        assert ask(sampling, user("my parcel"), tool_calls=told).finish_reason == "stop"
    forced = ask(Sampling(tools=tools, tool_choice="required")).tool_calls
    assert [(c.name, json.loads(c.arguments)["n"] >= 3) for c in forced] == [("look_up", True)]
    assert (
        ask(Sampling(tools=tools, tool_choice="mail"), user("my parcel"), tool_calls=told).tool_calls[0].name == "mail"
    )
    assert ask(Sampling(tools=tools, tool_choice="required", max_new_tokens=1)).finish_reason == "length"


def test_the_answer_to_a_tool_is_text_and_only_one_call_when_so_asked() -> None:
    two = {"q": [{"name": "look_up", "arguments": {"n": 3}}, {"name": "mail", "arguments": "not json"}]}
    calls = ask(Sampling(tools=(LOOK_UP, MAIL)), tool_calls=two).tool_calls
    assert [c.name for c in calls] == ["look_up", "mail"]
    assert calls[0].id != calls[1].id
    assert calls[1].arguments == "not json"
    one = ask(Sampling(tools=(LOOK_UP, MAIL), parallel_tool_calls=False), tool_calls=two).tool_calls
    assert [c.name for c in one] == ["look_up"]
    heard = (*user("q"), Message("assistant", "", calls[:1]), Message("tool", "it is here", tool_call_id=calls[0].id))
    assert ask(Sampling(tools=(LOOK_UP, MAIL)), heard, tool_calls=two).finish_reason == "stop"


def test_images_are_counted() -> None:
    pictures = (Image("data:image/png;base64,AA=="), Image("https://example.org/b.png"))
    seen = ask(Sampling(), (Message("user", "q", images=pictures),))
    assert seen.text.startswith("2 images: ")
    assert seen.prompt_tokens == ask(Sampling()).prompt_tokens + 2


def test_it_fails_as_it_is_told_to() -> None:
    engine = make(fail={"bad": "no luck", "once": {"message": "busy", "retry_after_s": 3, "times": 1}})
    with pytest.raises(EngineError, match="no luck") as raised:
        engine.stream(user("a bad one"), Sampling())
    assert (raised.value.retryable, raised.value.retry_after_s) == (True, None)
    with pytest.raises(EngineError, match="busy") as raised:
        engine.generate([user("once")], Sampling())
    assert raised.value.retry_after_s == 3
    assert engine.generate([user("once"), user("good")], Sampling())[0].finish_reason == "stop"
    check_health(engine, 1.0)
    down = make(fail={"": {"message": "down", "retryable": False}})
    for call in (lambda: down.generate([user("q")], Sampling()), lambda: check_health(down, 1.0)):
        with pytest.raises(EngineError, match="down") as raised:
            call()
        assert not raised.value.retryable


def test_it_breaks_off_in_the_middle() -> None:
    engine = make(answers={"q": "one two three"}, break_after=2)
    deltas = engine.stream(user("q"), Sampling())
    assert [next(deltas).text, next(deltas).text] == ["one", " two"]
    with pytest.raises(EngineError, match="broke off"):
        next(deltas)
    with pytest.raises(EngineError, match="broke off"):
        engine.generate([user("q")], Sampling())
    assert engine.generate([user("q")], Sampling(max_new_tokens=2))[0].text == "one two"


def test_silence_ends_when_it_is_stopped() -> None:
    engine, stopped = make(hang_s=60.0), threading.Event()
    with pytest.raises(EngineError, match="said nothing"):
        check_health(engine, 0.01)
    answers: list[Generation | None] = []
    thread = threading.Thread(target=lambda: answers.append(answer_whole(engine, user("q"), Sampling(), stopped)))
    thread.start()
    stopped.set()
    thread.join(10.0)
    assert answers == [None]
    assert answer_whole(make(), user("q"), Sampling(), threading.Event()).text == ask(Sampling()).text  # type: ignore[union-attr]
