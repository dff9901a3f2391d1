from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.dataset import Example
from luthier.core.message import Message, ToolCall
from luthier.data.fields import RowError
from luthier.data.formats import FORMATS, as_row, build, recognise

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ASKED, SAID = Message("user", "q"), Message("assistant", "a")


def made(row: dict[str, Any]) -> tuple[str, str, Example]:
    form = recognise(row)
    assert form is not None
    return form.name, form.kind, build(form, row)


@pytest.mark.parametrize(
    "row, name, kind, example",
    [
        ({"text": "t", "label": "x"}, "text_label", "labelled", Example("", (Message("user", "t"),), "x")),
        ({"text": "t", "label": 3}, "text_label", "labelled", Example("", (Message("user", "t"),), "3")),
        ({"text": "t", "label": 3.0}, "text_label", "labelled", Example("", (Message("user", "t"),), "3")),
        ({"text": "t", "label": True}, "text_label", "labelled", Example("", (Message("user", "t"),), "true")),
        ({"text": "t", "label": " x "}, "text_label", "labelled", Example("", (Message("user", "t"),), "x")),
        ({"text": "t"}, "text", "text", Example("", (Message("user", "t"),))),
        ({"messages": [U, A]}, "messages", "chat", Example("", (ASKED, SAID))),
        (
            {
                "messages": [
                    {"role": "developer", "content": "s"},
                    U,
                    {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
                ]
            },
            "messages",
            "chat",
            Example("", (Message("system", "s"), ASKED, SAID)),
        ),
        (
            {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "sharegpt",
            "chat",
            Example("", (Message("system", "s"), ASKED, SAID)),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                    {"from": "observation", "value": ""},
                    {"from": "gpt", "value": "a"},
                ]
            },
            "sharegpt",
            "chat",
            Example("", (ASKED, Message("assistant", "", (ToolCall("f", '{"x": 1}'),)), Message("tool", ""), SAID)),
        ),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca", "chat", Example("", (ASKED, SAID))),
        (
            {"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["h", "g"]]},
            "alpaca",
            "chat",
            Example(
                "",
                (
                    Message("system", "s"),
                    Message("user", "h"),
                    Message("assistant", "g"),
                    Message("user", "q\n\ni"),
                    SAID,
                ),
            ),
        ),
        ({"question": "q", "answer": "a"}, "question_answer", "question", Example("", (ASKED,), "a")),
        ({"question": "q", "answer": 18}, "question_answer", "question", Example("", (ASKED,), "18")),
        (
            {"question": "q", "answers": ["a", "b"]},
            "question_answers",
            "question",
            Example("", (ASKED,), "a", meta={"answers": ["a", "b"]}, references=("a", "b")),
        ),
        (
            {"question": "q", "answers": {"text": [], "answer_start": []}},
            "question_answers",
            "question",
            Example("", (ASKED,), None, meta={"answers": []}),
        ),
        (
            {"question": "q", "choices": ["no", "yes"], "answer": 1},
            "multiple_choice",
            "question",
            Example(
                "", (ASKED,), "yes", meta={"choices": ["no", "yes"], "answer": 1}, choices=("no", "yes"), correct=(1,)
            ),
        ),
        (
            {"question": "q", "choices": ["no", "yes"], "answer": "B"},
            "multiple_choice",
            "question",
            Example(
                "", (ASKED,), "yes", meta={"choices": ["no", "yes"], "answer": "B"}, choices=("no", "yes"), correct=(1,)
            ),
        ),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", "chat", Example("", (ASKED, SAID))),
        ({"anchor": "q", "positive": "p"}, "anchor_positive", "pairs", Example("", (ASKED,), positives=("p",))),
        (
            {"anchor": "q", "positive": ["p", "r", "p"], "negative": "n", "negative_1": "m", "negative_2": None},
            "anchor_positive",
            "pairs",
            Example("", (ASKED,), positives=("p", "r"), negatives=("n", "m")),
        ),
        (
            {"query": "q", "positive": "p", "negatives": ["n", "m"]},
            "query_positive",
            "pairs",
            Example("", (ASKED,), positives=("p",), negatives=("n", "m")),
        ),
        (
            {"query": "q", "pos": ["p"], "neg": ["n"], "id": 3},
            "query_pos",
            "pairs",
            Example("", (ASKED,), positives=("p",), negatives=("n",), meta={"id": 3}),
        ),
        ({"question": "q", "context": "p"}, "question_context", "pairs", Example("", (ASKED,), positives=("p",))),
        ({"sentence1": "q", "sentence2": "p"}, "sentences", "pairs", Example("", (ASKED,), positives=("p",))),
        (
            {"sentence1": "q", "sentence2": "p", "score": 3},
            "sentences_score",
            "similarity",
            Example("", (ASKED,), positives=("p",), score=3.0),
        ),
        (
            {"sentence1": "q", "sentence2": "p", "label": True},
            "sentences_label",
            "similarity",
            Example("", (ASKED,), positives=("p",), score=1.0),
        ),
        (
            {"question": "q", "context": "c", "answers": ["a"]},
            "question_answers",
            "question",
            Example("", (ASKED,), "a", meta={"context": "c", "answers": ["a"]}, references=("a",)),
        ),
        ({"prompt": [U], "completion": [A]}, "prompt_completion", "chat", Example("", (ASKED, SAID))),
        ({"prompt": "q", "response": "a"}, "prompt_response", "chat", Example("", (ASKED, SAID))),
        (
            {"prompt": "q", "chosen": "a", "rejected": A | {"content": "b"}},
            "preference",
            "preference",
            Example("", (ASKED,), chosen=(SAID,), rejected=(Message("assistant", "b"),)),
        ),
        (
            {"chosen": [U, A], "rejected": [U, A | {"content": "b"}]},
            "preference",
            "preference",
            Example("", (ASKED,), chosen=(SAID,), rejected=(Message("assistant", "b"),)),
        ),
        (
            {"prompt": "q", "chosen": [U, A], "rejected": [U, A | {"content": "b"}]},
            "preference",
            "preference",
            Example("", (ASKED,), chosen=(SAID,), rejected=(Message("assistant", "b"),)),
        ),
        (
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            "preference",
            "preference",
            Example("", (ASKED,), chosen=(SAID,), rejected=(Message("assistant", "b"),)),
        ),
        ({"prompt": [U], "completion": "a", "label": True}, "kto", "preference", Example("", (ASKED,), chosen=(SAID,))),
        (
            {"prompt": "q", "completion": "a", "label": "False"},
            "kto",
            "preference",
            Example("", (ASKED,), rejected=(SAID,)),
        ),
        ({"messages": [U, A], "label": False}, "kto_messages", "preference", Example("", (ASKED,), rejected=(SAID,))),
        ({"messages": [U, A], "label": "math"}, "messages", "chat", Example("", (ASKED, SAID), meta={"label": "math"})),
    ],
)
def test_each_way_of_writing(row: dict[str, Any], name: str, kind: str, example: Example) -> None:
    assert made(row) == (name, kind, example)


def test_unused_fields_and_tools_are_kept() -> None:
    *_, example = made({"text": "t", "label": "x", "source": "web", "nothing": None, "score": float("nan")})
    assert example.meta == {"source": "web"}
    *_, example = made({"messages": [U, A], "tools": '[{"name": "f"}]'})
    assert example.meta == {"tools": [{"name": "f"}]}


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"text": "", "label": "x"}, "text is empty"),
        ({"text": " \n", "label": "x"}, "text is empty"),
        ({"text": None, "label": "x"}, "text must be text; got null"),
        ({"text": 5, "label": "x"}, "text must be text; got 5"),
        ({"text": "half \ud83d", "label": "x"}, "text holds half of a surrogate pair at character 5"),
        ({"text": "t", "label": None}, "label must be text, a whole number or true/false; got null"),
        ({"text": "t", "label": float("nan")}, "label must be text, a whole number or true/false; got NaN"),
        ({"text": "t", "label": 0.5}, "label must be text, a whole number or true/false; got 0.5"),
        ({"text": "t", "label": ["a", "b"]}, 'label must be text, a whole number or true/false; got ["a", "b"]'),
        ({"text": "t", "label": " "}, "label is empty"),
        ({"messages": []}, "messages is empty"),
        ({"messages": None}, "messages is missing"),
        ({"messages": "hi"}, 'messages must be a list of messages; got "hi"'),
        ({"messages": ["hi"]}, 'messages[0] must be an object with role and content; got "hi"'),
        ({"messages": [U]}, "messages has no assistant turn"),
        ({"messages": [U, {"content": "a"}]}, "messages[1]: role is missing"),
        (
            {"messages": [{"role": "robot", "content": "a"}, A]},
            'messages[0]: unknown role "robot"; allowed: system, user',
        ),
        ({"messages": [{"role": "user", "content": ""}, A]}, "messages[0]: content is empty"),
        ({"messages": [U, {"role": "assistant", "content": None}]}, "messages[1]: content must be text; got null"),
        ({"messages": [U, A | {"weight": 0}]}, "messages[1]: weight 0 (a turn not to train on) is not supported"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]},
            "messages[0]: only content parts of type 'text' are supported; got \"image_url\"",
        ),
        (
            {"messages": [U, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages[1]: message.tool_calls entries",
        ),
        ({"messages": [U, {"role": "assistant", "content": "", "tool_calls": ["f"]}]}, "messages[1]: "),
        ({"messages": [U, A], "tools": "no"}, "tools: not valid JSON"),
        ({"messages": [U, A], "tools": ["no"]}, "tools must be a list of objects"),
        ({"conversations": [{"from": "function_call", "value": "{"}]}, "conversations[0]: not valid JSON"),
        ({"instruction": "q", "output": ""}, "output is empty"),
        ({"instruction": "q", "input": 3, "output": "a"}, "input must be text; got 3"),
        ({"instruction": "q", "output": "a", "history": [["h"]]}, "history[0] must be a pair of question and answer"),
        ({"question": "q", "answer": ["a"]}, 'answer must be text; got ["a"]'),
        ({"question": "q", "answers": "a"}, 'answers must be a list; got "a"'),
        ({"question": "q", "choices": ["x"], "answer": 0}, "choices must be a list of at least two"),
        (
            {"question": "q", "choices": ["x", "y"], "answer": 2},
            "answer must be one of the 2 choices or an index from 0; got 2",
        ),
        (
            {"question": "q", "choices": ["x", "y"], "correct": []},
            "correct must be a list of the right choices; got []",
        ),
        ({"question": "q", "choices": ["x", "y"], "correct": 0}, "correct must be a list of the right choices; got 0"),
        (
            {"question": "q", "choices": ["x", "y"], "correct": [0, "C"]},
            'correct[1] must be one of the 2 choices or an index from 0; got "C"',
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"chosen": "a", "rejected": "b"}, "prompt is missing"),
        (
            {"chosen": [A], "rejected": [A | {"content": "b"}]},
            "prompt is missing, and chosen and rejected share no beginning",
        ),
        (
            {"prompt": "q", "chosen": [U], "rejected": "b"},
            "chosen must begin with an assistant turn after the prompt; got role 'user'",
        ),
        (
            {"prompt": "q", "completion": "a", "label": "good"},
            'label of a completion must be true or false; got "good"',
        ),
        ({"anchor": "q", "positive": ""}, "positive is empty"),
        ({"anchor": "q", "positive": []}, "positive is empty"),
        ({"anchor": " ", "positive": "p"}, "anchor is empty"),
        ({"anchor": "q", "positive": ["p", 3]}, "positive[1] must be text; got 3"),
        ({"anchor": "q", "positive": "p", "negatives": ["n", ""]}, "negatives[1] is empty"),
        ({"query": "q", "pos": ["p"], "neg": ["p"]}, 'the same text is pos and negative: "p"'),
        (
            {"sentence1": "q", "sentence2": "p", "score": "high"},
            'score must be a number, higher where the texts are more alike; got "high"',
        ),
        ({"sentence1": "q", "sentence2": "p", "score": float("nan")}, "score must be a number"),
        ({"sentence1": "q", "sentence2": "p", "label": "entailment"}, "label must be a number"),
        (
            {"messages": [A], "label": True},
            "a marked conversation must end with the assistant turn that the label is about",
        ),
    ],
)
def test_why_a_row_cannot_be_used(row: dict[str, Any], reason: str) -> None:
    form = recognise(row)
    assert form is not None
    with pytest.raises(RowError) as raised:
        build(form, row)
    assert str(raised.value).startswith(reason)


def test_unknown_fields_are_no_format() -> None:
    assert recognise({"body": "t", "topic": "x"}) is None
    assert recognise({}) is None


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
TURNS = st.builds(
    Message, st.sampled_from(["user", "assistant", "tool"]), WORDS, st.just(()), st.sampled_from([None, "call_1"])
)
REPLY = st.tuples(st.builds(Message, st.just("assistant"), WORDS))
META = st.dictionaries(st.sampled_from(["source", "id"]), WORDS)
EXAMPLES = st.one_of(
    st.tuples(
        st.just("labelled"),
        st.builds(lambda t, x, m: Example("", (Message("user", t),), x.strip(), meta=m), WORDS, WORDS, META),
    ),
    st.tuples(st.just("text"), st.builds(lambda t, m: Example("", (Message("user", t),), meta=m), WORDS, META)),
    st.tuples(
        st.just("question"),
        st.builds(lambda t, x, m: Example("", (Message("user", t),), x, meta=m), WORDS, WORDS, META),
    ),
    st.tuples(
        st.just("question"),
        st.builds(
            lambda t, x: Example(
                "", (Message("user", t),), x[0] if x else None, meta={"answers": x}, references=tuple(x)
            ),
            WORDS,
            st.lists(WORDS),
        ),
    ),
    st.tuples(
        st.just("pairs"),
        st.builds(
            lambda t, p, n, m: Example(
                "", (Message("user", t),), positives=tuple(p), negatives=tuple(x for x in n if x not in p), meta=m
            ),
            WORDS,
            st.lists(WORDS, min_size=1, unique=True),
            st.lists(WORDS, unique=True),
            META,
        ),
    ),
    st.tuples(
        st.just("similarity"),
        st.builds(
            lambda t, p, s, m: Example("", (Message("user", t),), positives=(p,), score=s, meta=m),
            WORDS,
            WORDS,
            st.floats(allow_nan=False, allow_infinity=False),
            META,
        ),
    ),
    st.tuples(
        st.just("chat"),
        st.builds(lambda m, r, k: Example("", (*m, *r), meta=k), st.lists(TURNS, max_size=4), REPLY, META),
    ),
    st.tuples(
        st.just("preference"),
        st.builds(
            lambda p, a, b: Example("", tuple(p), chosen=a, rejected=b), st.lists(TURNS, min_size=1), REPLY, REPLY
        ).filter(lambda e: e.chosen != e.rejected),
    ),
    st.tuples(
        st.just("preference"),
        st.builds(lambda p, a: Example("", tuple(p), chosen=a), st.lists(TURNS, min_size=1), REPLY),
    ),
    st.tuples(
        st.just("preference"),
        st.builds(lambda p, a: Example("", tuple(p), rejected=a), st.lists(TURNS, min_size=1), REPLY),
    ),
)


def test_choices_know_their_right_places_and_answers_all_their_references() -> None:
    several = {"question": "q", "choices": ["x", "y", "z"], "correct": ["C", 0]}
    name, kind, example = made(several)
    assert (name, kind, example.target) == ("multiple_correct", "question", "z")
    assert (example.choices, example.correct) == (("x", "y", "z"), (2, 0))
    assert as_row(example, "question") == several
    by_text = made({"question": "q", "choices": ["B", "A"], "answer": "A"})[2]
    assert (by_text.target, by_text.correct) == ("A", (1,))
    read = made({"question": "q", "answers": ["a", "b"]})[2]
    assert as_row(read, "question") == {"question": "q", "answers": ["a", "b"]}
    bare = Example("", (ASKED,), "a", references=("a", "b"))
    assert made(as_row(bare, "question"))[2].references == ("a", "b")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EXAMPLES)
def test_what_is_written_reads_back_the_same(drawn: tuple[str, Example]) -> None:
    kind, example = drawn
    name, read_kind, read = made(as_row(example, kind))  # type: ignore[arg-type]
    assert (read_kind, read) == (kind, example), name


def test_every_format_has_its_own_fields() -> None:
    assert len({(form.name, form.needs) for form in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize(
    ("row", "name", "target"),
    [
        ({"text": "t", "target": 3.5, "score": 0.1}, "text_target", "3.5"),
        ({"text": "t", "target": "-2"}, "text_target", "-2"),  # tables have text
        ({"id": 7, "text": "t", "score": 4}, "text_score", "4"),
        ({"text": "t", "value": 1e3}, "text_value", "1000"),
    ],
)
def test_texts_with_a_number(row: dict[str, Any], name: str, target: str) -> None:
    found, kind, example = made(row)
    assert (found, kind, example.target, example.score) == (name, "number", target, float(target))
    again = made(as_row(example, "number"))[2]
    assert (again.text, again.score, again.target) == ("t", example.score, target)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "t", "score": 4.1, "url": "u"},  # a corpus with a score of its quality
        {"text": "t", "target": "positive"},
        {"text": "t", "target": True},
        {"text": "t", "target": None},
        {"text": "t", "target": 10**400},
    ],
)
def test_other_numbers_beside_a_text_are_not_targets(row: dict[str, Any]) -> None:
    assert made(row)[1] == "text"


def test_a_fraction_is_no_label() -> None:
    with pytest.raises(RowError, match=r"a number to predict goes in target \(--column target=label\)"):
        made({"text": "t", "label": 3.5})


def entity(kind: str, start: int, end: int, text: str) -> dict[str, Any]:
    return {"type": kind, "start": start, "end": end, "text": text}


@pytest.mark.parametrize(
    ("row", "name", "text", "target"),
    [
        (
            {"tokens": ["Ada", "Lovelace", "met", "Bob"], "tags": ["B-P", "I-P", "O", "B-P"]},
            "tokens_tags",
            "Ada Lovelace met Bob",
            [entity("P", 0, 12, "Ada Lovelace"), entity("P", 17, 20, "Bob")],
        ),
        (
            {"tokens": ["我", "在", "北", "京", "OK", "吗"], "ner_tags": ["O", "O", "B-L", "I-L", "O", "O"]},
            "tokens_ner_tags",
            "我在北京 OK 吗",
            [entity("L", 2, 4, "北京")],
        ),
        (
            {"text": "in Bonn", "entities": [{"label": "L", "start": 3, "end": 7, "value": "Bonn"}]},
            "text_entities",
            "in Bonn",
            [entity("L", 3, 7, "Bonn")],
        ),
    ],
)
def test_texts_with_entities(row: dict[str, Any], name: str, text: str, target: list[dict[str, Any]]) -> None:
    found, kind, example = made(row)
    assert (found, kind, example.text, json.loads(example.target or "")) == (name, "entities", text, target)
    again = made(as_row(example, "entities"))[2]
    assert (again.messages, again.target) == (example.messages, example.target)


def test_relations_and_events() -> None:
    row = {
        "text": "Ada moved to Bonn",
        "entities": [entity("P", 0, 3, "Ada")],
        "relations": [{"type": "lives in", "head": {"text": "Ada"}, "tail": "Bonn"}],
        "events": [{"type": "move", "trigger": "moved", "arguments": [{"role": "to", "text": "Bonn"}]}],
        "page": 3,
    }
    name, kind, example = made(row)
    assert (name, kind, example.meta) == ("text_relations", "extraction", {"page": 3})
    assert json.loads(example.target or "") == {
        "entities": row["entities"],
        "relations": [{"type": "lives in", "head": "Ada", "tail": "Bonn"}],
        "events": row["events"],
    }
    assert made(as_row(example, "extraction"))[2] == example


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tokens": ["a"], "tags": ["O", "O"]}, "tags must be as many as tokens, 1; got 2"),
        ({"tokens": ["a", "b"], "ner_tags": [0, 1]}, "not their numbers; got 0"),
        ({"tokens": ["a"], "tags": ["PERSON"]}, "tag 'PERSON' is not O, B-TYPE or I-TYPE"),
        ({"text": "abc", "entities": [{"type": "X", "start": 2, "end": 9}]}, "must lie in the text of 3 characters"),
        ({"text": "abc", "entities": [{"type": "X", "start": "2", "end": 3}]}, "start must be a place in the text"),
        ({"text": "abc", "entities": [{"type": "X", "start": 0, "end": 1, "text": "b"}]}, 'is "a", not "b"'),
        ({"text": "abc", "entities": [{"start": 0, "end": 1}]}, r"entities\[0\]: type must be text; got null"),
        ({"text": "abc", "relations": [{"type": "r", "head": "a"}]}, r"relations\[0\]: tail must be text"),
        (
            {"text": "abc", "events": [{"type": "r", "trigger": "a", "arguments": [{"text": "b"}]}]},
            r"arguments\[0\]: role",
        ),
    ],
)
def test_annotations_that_cannot_be(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        made(row)


def test_notes_of_that_name_on_plain_text_are_not_entities() -> None:
    assert made({"text": "abc", "entities": ["Ada", "Bob"]})[1] == "text"
