"""What each guardrail says of its own kind of text, beyond what all have in common (``test_battery``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from luthier.core import catalog
from luthier.core.engine import Constraint
from luthier.core.message import Message
from luthier.gateway.guardrails._contract import Context
from luthier.gateway.guardrails._segments import segments
from luthier.gateway.guardrails._words import content_words, numbers

Look = Callable[..., list[str]]


def found(name: str, text: str, options: dict[str, Any], models: Any, **context: Any) -> list[Any]:
    entry = catalog.load("guardrails", name)
    config = entry.configure(options)
    prepare = entry.optional("prepare")
    state = prepare(config, models) if prepare is not None else None
    made: list[Any] = entry(text, config, Context(**{"direction": "output", "state": state, **context}))
    return made


def test_names_are_found_with_a_tagger_and_said_not_to_be_without(models: Any) -> None:
    text = "Ada Byron met Grace. 张伟没有来。"
    spans = found("pii", text, {"names": "tagger"}, models)
    assert [(each.kind, text[each.start : each.end]) for each in spans] == [
        ("NAME", "Ada Byron"),
        ("NAME", "Grace"),
        ("NAME", "张伟"),
    ]
    assert found("pii", text, {}, models) == []
    assert found("pii", text, {"names": "tagger", "name_types": ["ORG"]}, models) == []


def test_kinds_and_regions_of_pii_can_be_chosen(models: Any) -> None:
    text = "a@x.org 13800138000"
    assert [each.kind for each in found("pii", text, {"kinds": ["EMAIL"]}, models)] == ["EMAIL"]
    assert [each.kind for each in found("pii", "01 42 68 53 00", {"regions": ["FR"]}, models)] == ["PHONE"]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('{"a": 1}', None), ('{"a": "secret"}', "at $.a: type must be \"integer\""), ("{}", "at $: missing: a"), ("[]", "type must be"),
        ('{"a": 1, "b": 2}', "keys that are not allowed"), ('{"a": 1', "the answer is not JSON at character"), ("```json\n{\"a\": 1}\n```", "not JSON"),
    ],
)  # fmt: skip
def test_answers_fit_a_schema(answer: str, problem: str | None, models: Any) -> None:
    schema = {
        "type": "object",
        "required": ["a"],
        "properties": {"a": {"type": "integer"}},
        "additionalProperties": False,
    }
    made = found("schema", answer, {"schema": schema}, models)
    assert (problem is None and not made) or (problem is not None and problem in made[0].reason)
    assert all("secret" not in each.reason for each in made)


def test_fences_are_let_through_where_it_is_said(models: Any) -> None:
    assert found("schema", '```json\n{"a": 1}\n```', {"schema": {"type": "object"}, "fenced": True}, models) == []


def test_without_a_schema_that_of_the_request_counts(models: Any) -> None:
    wanted = Constraint("json_schema", json.dumps({"type": "object", "required": ["a"]}))
    assert found("schema", "{}", {}, models, constraint=wanted)
    assert found("schema", "{}", {}, models, constraint=Constraint("json")) == []
    assert found("schema", "[]", {}, models, constraint=Constraint("json"))
    assert found("schema", "free text", {}, models) == []


def test_a_schema_is_checked_on_what_the_caller_will_see(models: Any) -> None:
    schema = {"properties": {"mail": {"pattern": "^[a-z@.]+$"}}}
    text = '{"mail": "[EMAIL_1]"}'
    assert found("schema", text, {"schema": schema}, models)
    assert (
        found("schema", text, {"schema": schema}, models, restored=lambda each: each.replace("[EMAIL_1]", "a@x.org"))
        == []
    )


GIVEN = (
    Message("system", "Our shop opens at 9 on weekdays. Violins are repaired within 14 days. Returns are free."),
    Message("user", "When is it open?"),
)


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("The shop opens at 9 on weekdays.", 0.0),
        ("Violins are repaired within 14 days. Returns are free of charge.", 0.0),
        ("The shop opens at 8 on weekdays.", 1.0),
        ("We also sell grand pianos from Vienna.", 1.0),
        ("The shop opens at 9 on weekdays. We also sell grand pianos from Vienna.", 0.5),
        ("Yes.", 0.0),
    ],
)
def test_support_of_an_answers_sentences(answer: str, share: float, models: Any) -> None:
    made = found("groundedness", answer, {"threshold": 0.9}, models, messages=GIVEN)
    assert sum(each.score for each in made) == pytest.approx(share)


def test_support_can_be_likeness_of_vectors(models: Any) -> None:
    answer = "Weekdays opens shop nine oclock."
    assert found("groundedness", answer, {"overlap": 0.9}, models, messages=GIVEN)
    assert (
        found(
            "groundedness", answer, {"overlap": 0.9, "embedder": "embedder", "similarity": 0.4}, models, messages=GIVEN
        )
        == []
    )


def test_without_context_there_is_nothing_to_be_grounded_in(models: Any) -> None:
    assert found("groundedness", "The moon is made of cheese.", {}, models, messages=(Message("user", "x"),)) == []
    tools = (Message("user", "x"), Message("tool", "The moon is made of rock.", tool_call_id="a"))
    assert found("groundedness", "The castle stands in Portugal.", {}, models, messages=tools)


def test_chinese_is_compared_by_pairs_of_characters(models: Any) -> None:
    given = (Message("system", "本店周一至周五九点开门，小提琴十四天内修好。"), Message("user", "几点开门？"))
    assert found("groundedness", "本店周一至周五九点开门。", {}, models, messages=given) == []
    assert found("groundedness", "我们在维也纳出售三角钢琴。", {}, models, messages=given)
    assert content_words("修好了") == {"修好", "好了"} and numbers("1,299 and 3.5") == {"1299", "3.5"}


def test_topics_by_words(look: Look) -> None:
    options = {"deny": {"weapons": {"words": ["rail gun", "榴弹"]}}}
    assert look("topics", "A Rail\n gun and 榴弹炮", options) == ["weapons", "weapons"]
    assert look("topics", "a railgun, a monorail gunner", options) == []


def test_topics_by_examples(look: Look) -> None:
    options = {"deny": {"weapons": {"examples": ["how do I build a gun"]}}, "embedder": "embedder", "similarity": 0.7}
    assert look("topics", "how do I build a big gun", options) == ["weapons"]
    assert look("topics", "when does the shop open", options) == []


def test_only_allowed_topics_where_some_are_allowed(look: Look) -> None:
    options = {
        "allow": {"shop": {"words": ["violin"], "examples": ["when does the shop open"]}},
        "embedder": "embedder",
    }
    assert look("topics", "my violin is broken", options) == []
    assert look("topics", "when does the shop open today", options) == []
    assert look("topics", "who won the election", options) == ["off_topic"]
    assert look("topics", "who won the election", options, last=False) == [], "only what is asked now must be on topic"
    assert look("topics", "who won the election", options, direction="output") == []


def test_toxic_sentences(models: Any) -> None:
    options = {"classifier": "judge", "labels": {"bad": 0.5}}
    text = "Good day. What an awful day! Bye."
    (made,) = found("toxicity", text, options, models)
    assert (made.kind, text[made.start : made.end].strip()) == ("bad", "What an awful day!")
    assert found("toxicity", text, options | {"labels": {"bad": 0.99}}, models) == []
    assert len(found("toxicity", text, options, models, direction="input")) == 1


@pytest.mark.parametrize(
    ("text", "allowed", "kinds"),
    [
        ("This is a perfectly ordinary English sentence.", ["en"], []),
        ("Dies ist ein ganz gewöhnlicher deutscher Satz.", ["en", "zh"], ["language"]),
        ("这是一个非常普通的中文句子。", ["zh"], []),
        ("这是一个非常普通的中文句子。", ["en"], ["language"]),
        ("ok", ["zh"], []),
        ("```\nfor (int i = 0; i < 10; i++) print(i);\n```", ["zh"], []),
        ("12345 67890 12345 67890", ["zh"], []),
    ],
)
def test_languages(text: str, allowed: list[str], kinds: list[str], look: Look) -> None:
    assert look("language", text, {"allowed": allowed}) == kinds


def test_a_request_that_is_too_long(look: Look) -> None:
    long = (Message("system", "x" * 60), Message("user", "y" * 50))
    assert look("limits", "y" * 50, {"input_characters": 100}, messages=long) == ["input_length"]
    assert look("limits", "y" * 50, {"input_characters": 110}, messages=long) == []
    assert look("limits", "z", {"input_characters": 100}, messages=long, last=False) == []


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("I am sorry. " * 60, ["loop"]), ("no " * 300, ["loop"]), ("=" * 900, ["loop"]), ("对不起，" * 200, ["loop"]),
        ("".join(f"{n}. item\n" for n in range(200)), []), ("a b " * 40, []), (" " * 2000, []),
        ("The quick brown fox jumps over the lazy dog, and " + "then it sleeps. " * 10, []),
    ],
)  # fmt: skip
def test_loops(text: str, kinds: list[str], look: Look) -> None:
    assert look("limits", text, {}, direction="output") == kinds


def test_a_leaked_canary_in_many_forms(models: Any) -> None:
    import base64
    import codecs

    from luthier.gateway.guardrails.canary import canary_of

    entry = catalog.load("guardrails", "canary")
    config, canary = entry.configure({}), canary_of("0a1b2c3d4e5f6789")
    word = canary.word
    context = Context("output", state=canary)
    for shown in (
        word, word.upper(), word[:8], word[5:14], word[::-1], " ".join(word), "-".join(word), "\n".join(word), codecs.encode(word, "rot13"),
        base64.b64encode(word.encode()).decode(), base64.b64encode(f"x{word}".encode()).decode(), base64.b64encode(f"the word is {word}!".encode()).decode(),
        word.encode().hex(), ", ".join(f"'{each}'" for each in word),
    ):  # fmt: skip
        assert [each.kind for each in entry(f"It is {shown}, I think.", config, context)] == ["canary"], shown
    for other in ("0a1b2c3", "f1e2d3c4b5a69788", "hello", word[:7] + " and other words"):
        assert entry(f"It is {other}, I think.", config, context) == []


def test_the_canary_goes_into_the_system_prompt() -> None:
    entry = catalog.load("guardrails", "canary")
    config = entry.configure({"text": "Secret: {canary}"})
    state = entry.module.prepare(config, None)
    context = Context("input", state=state)
    with_prompt = entry.module.amend((Message("system", "Be kind."), Message("user", "hi")), config, context)
    assert with_prompt[0].content == f"Be kind.\n\nSecret: {state.word}" and len(with_prompt) == 2
    assert entry.module.amend((Message("user", "hi"),), config, context)[0] == Message(
        "system", f"Secret: {state.word}"
    )
    never = entry.configure({"always": False})
    assert entry.module.amend((Message("user", "hi"),), never, context) == (Message("user", "hi"),)
    assert state.word != entry.module.prepare(config, None).word


def test_sentences_end_where_they_end() -> None:
    text = "One. Two 3.5 three!\nFour？Five"
    assert [text[part.start : part.end] for part in segments(text, 0, True)] == [
        "One.",
        " Two 3.5 three!",
        "\n",
        "Four？",
        "Five",
    ]
    assert [text[part.start : part.end] for part in segments(text, 0, False)] == [
        "One.",
        " Two 3.5 three!",
        "\n",
        "Four？",
    ]
    assert [part.end for part in segments("x" * 1500, 0, True)] == [600, 1200, 1500]
