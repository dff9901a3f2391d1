from __future__ import annotations

import json
from dataclasses import replace

import pytest

from luthier.core.engine import Constraint, EngineInfo, Generation, Sampling
from luthier.core.message import Image, Message, Tool, ToolCall
from luthier.gateway.access.caller import Caller
from luthier.gateway.cache.key import Control, fixed, keepable, key_of, partition_of, repeatable
from luthier.gateway.exchange import Exchange
from luthier.gateway.layers import Question
from luthier.gateway.targets.served import Served


class Still:
    def __init__(self, **info):
        self.info = EngineInfo(**{"model": "m", "engine": "e", "capabilities": frozenset(), **info})


def question(*turns, tenant="acme", operation="chat", info=None, name="m", n=1, prompts=None, stream=False, **sampling):
    messages = tuple(Message(*turn) if isinstance(turn, tuple) else turn for turn in turns or [("user", "hello")])
    exchange = Exchange(operation, "asked", Caller(tenant))
    served = Served(name, Still(**(info or {})))
    return Question(exchange, prompts or (messages,), Sampling(**sampling), n=n, served=served, stream=stream)


BASE = {"temperature": 0.5, "seed": 7}


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "other"},
        {"operation": "completion"},
        {"name": "m2"},
        {"info": {"model_digest": "1"}},
        {"info": {"base_digest": "1"}},
        {"info": {"template_digest": "1"}},
        {"info": {"prompt_digest": "1"}},
        {"info": {"engine": "other"}},
        {"info": {"labels": ("a", "b")}},
        {"info": {"meta": (("index_version", 2),)}},
        {"n": 2},
        {"prompts": ("hello",)},
        {"prompts": ((Message("user", "hello "),),)},
        {"prompts": ((Message("system", "hello"),),)},
        {"prompts": ((Message("system", ""), Message("user", "hello")),)},
        {"prompts": ((Message("user", "hello"),), (Message("user", "hello"),))},
        {"prompts": ((Message("user", "hello", images=(Image("data:image/png;base64,AA"),)),),)},
        {"prompts": ((Message("assistant", "", (ToolCall("f", "{}", "1"),)), Message("user", "hello")),)},
        {"prompts": ((Message("tool", "hello", tool_call_id="1"),),)},
        {"max_new_tokens": 3},
        {"temperature": 0.6},
        {"seed": 8},
        {"seed": None},
        {"top_p": 0.9},
        {"top_k": 4},
        {"min_p": 0.1},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"logit_bias": ((1, 1.0),)},
        {"logprobs": 2},
        {"beams": 2},
        {"stop": ("x",)},
        {"constraint": Constraint("json")},
        {"tools": (Tool("f"),)},
        {"tools": (Tool("f"),), "tool_choice": "none"},
        {"tools": (Tool("f", strict=True),)},
        {"tools": (Tool("f"),), "parallel_tool_calls": False},
    ],
    ids=lambda other: "-".join(map(str, other)),
)
def test_everything_that_an_answer_depends_on_is_in_its_key(other):
    assert key_of(question(**BASE | other)) != key_of(question(**BASE))


def test_all_of_sampling_is_in_the_key():
    """A field that somebody adds to Sampling and that is not looked at here would be a wrong answer."""
    assert set(Sampling.__dataclass_fields__) == {
        "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop", "min_p", "presence_penalty",
        "frequency_penalty", "logit_bias", "logprobs", "beams", "constraint", "tools", "tool_choice", "parallel_tool_calls",
    }  # fmt: skip


def test_what_an_answer_does_not_depend_on_is_not():
    assert key_of(question(**BASE)) == key_of(question(**BASE))
    assert key_of(question(stream=True)) == key_of(question())
    assert key_of(question(top_p=0.5, seed=1)) == key_of(question()), "greedy decoding draws nothing"
    odd = question(("user", "half \ud83d of a pair"))
    assert key_of(odd) != key_of(question(("user", "half \ud83e of a pair")))


def test_repeatable_and_fixed():
    assert (
        repeatable(Sampling())
        and repeatable(Sampling(temperature=1.0, seed=0))
        and repeatable(Sampling(temperature=1.0, beams=2))
    )
    assert not repeatable(Sampling(temperature=0.1))
    assert fixed(("text",)) and fixed(((Message("user", "x", images=(Image("data:x"),)),),))
    assert not fixed(((Message("user", "x", images=(Image("https://x/y.png"),)),),))


@pytest.mark.parametrize(
    ("header", "control"),
    [
        ("", Control()),
        ("no-cache", Control(read=False)),
        ("No-Store", Control(read=False, keep=False)),
        ("max-age=30, only-if-cached", Control(max_age_s=30, only_cached=True)),
        ('max-age="5"', Control(max_age_s=5)),
        ("max-age=-1, max-stale, private=x", Control()),
        ("sampled", Control(sampled=True)),
        ("max-age=٣", Control()),
    ],
)
def test_cache_control(header, control):
    assert Control.of(header) == control


def same(left, right, *, words, before=()):
    first, second = (partition_of(question(*before, ("user", text)), words=words) for text in (left, right))
    assert (first[1], second[1]) == (left, right)
    return first[0] == second[0]


@pytest.mark.parametrize(
    ("left", "right", "by_words", "by_meaning"),
    [
        ("How do I reset my password?", "how can I reset the password", True, True),
        ("Where is my parcel?", "Where are my parcels", True, True),
        ("Where is my parcel?", "Where is my letter?", False, True),
        ("What is 12 * 7?", "What is 12 * 8?", False, False),
        ("Meet at 9:30", "Meet at 9:45", False, False),
        ("Can I cancel it?", "Can't I cancel it?", False, False),
        ("Can’t I cancel it?", "Can I not cancel it?", False, True),
        ("Send it from Ada to Bob", "Send it from Bob to Ada", False, True),
        ("from 1 to 2", "from 2 to 1", False, False),
        ("Who is the president?", "Who was the president?", False, True),
        ("When did it end?", "Where did it end?", False, True),
        ("names starting with D", "names starting with D or H", False, True),
        ("我的包裹在哪里", "我的信在哪里", False, True),
        ("版本 3", "版本 4", False, False),
    ],
)
def test_what_may_differ_in_wording(left, right, by_words, by_meaning):
    assert same(left, right, words=True) is by_words
    assert same(left, right, words=False) is by_meaning


def test_all_but_the_wording_of_the_last_turn_must_be_equal():
    def of(asked):
        return partition_of(asked, words=False)[0]

    plain = of(question(("system", "be brief"), ("user", "hello")))
    assert of(question(("system", "be brief"), ("user", "hi"))) == plain
    for other in (
        question(("system", "be long"), ("user", "hello")),
        question(("user", "hello")),
        question(("system", "be brief"), ("user", "hello"), tenant="other"),
        question(("system", "be brief"), ("user", "hello"), max_new_tokens=9),
        question(("system", "be brief"), ("user", "hello"), info={"model_digest": "1"}),
        question(("system", "be brief"), ("user", "x"), ("assistant", "y"), ("user", "hello")),
    ):
        assert of(other) != plain


@pytest.mark.parametrize(
    "asked",
    [
        question(n=2),
        question(prompts=("raw text",)),
        question(prompts=((Message("user", "a"),), (Message("user", "b"),))),
        question(("user", "hello"), ("assistant", "so")),
        question(Message("user", "what is this", images=(Image("data:x"),))),
        question(("user", "  ")),
        question(("user", "f?"), Message("tool", "5", tool_call_id="1")),
    ],
)
def test_what_is_never_answered_by_meaning(asked):
    assert partition_of(asked, words=True) is None


def made(text="x", reason="stop", **more):
    return Generation(text, (), (), reason, **more)


@pytest.mark.parametrize(
    ("constraint", "answer", "good"),
    [
        (None, made(), True),
        (None, made(reason="length"), False),
        (None, made(reason="content_filter"), False),
        (None, made("", "tool_calls", tool_calls=(ToolCall("f", "{}"),)), False),
        (None, made(tool_calls=(ToolCall("f", "{}"),)), False),
        (Constraint("json"), made("{}"), True),
        (Constraint("json"), made('{"a'), False),
        (Constraint("json_schema", "{}"), made("no"), False),
        (Constraint("choice", json.dumps(["yes", "no"])), made("yes"), True),
        (Constraint("choice", json.dumps(["yes", "no"])), made("ye"), False),
    ],
)
def test_what_may_be_kept(constraint, answer, good):
    asked = question()
    asked = replace(asked, sampling=Sampling(constraint=constraint))
    assert keepable(asked, [answer]) is good
    assert keepable(asked, [made('{"good": 1}' if constraint and "json" in constraint.kind else "yes"), answer]) is good
