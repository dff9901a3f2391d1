from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.scorers._score import Answer, Target
from luthier.scorers._tool_calls import Call, calls_in
from luthier.scorers.tool_call import Config, score

WEATHER = {"name": "weather", "arguments": {"city": "北京", "days": 3}}
TIME = {"name": "time", "arguments": {}}


def openai(*calls: dict[str, Any]) -> str:
    made = [
        {
            "id": f"call_{i}",
            "type": "function",
            "function": {"name": c["name"], "arguments": json.dumps(c["arguments"])},
        }
        for i, c in enumerate(calls)
    ]
    return json.dumps({"role": "assistant", "content": None, "tool_calls": made})


def tags(*calls: dict[str, Any]) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(c, ensure_ascii=False)}\n</tool_call>" for c in calls)


BOTH = [Call("weather", {"city": "北京", "days": 3}), Call("time", {})]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (openai(WEATHER, TIME), BOTH),
        (json.dumps(json.loads(openai(WEATHER, TIME))["tool_calls"]), BOTH),
        ("I will look.\n" + tags(WEATHER, TIME), BOTH),
        (tags(WEATHER).removesuffix("</tool_call>") + tags(TIME).removesuffix("\n</tool_call>"), BOTH),
        (json.dumps([WEATHER, TIME]), BOTH),
        (f"{json.dumps(WEATHER)}\nand {json.dumps(TIME)}", BOTH),
        (f"```json\n{json.dumps(WEATHER)}\n```", BOTH[:1]),
        ('{"name": "weather", "parameters": {"city": "北京", "days": 3}}', BOTH[:1]),
        ('{"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "北京", "days": 3}}', BOTH[:1]),
        ('{"function_call": {"name": "weather", "arguments": "{\\"city\\": \\"北京\\", \\"days\\": 3}"}}', BOTH[:1]),
        ('<functioncall> {"name": "time"}', BOTH[1:]),
        ('{"name": "time", "arguments": null}', BOTH[1:]),
        ('{"name": "time", "arguments": "not json"}', [Call("time", "not json")]),
        ('{"name": "Ada", "age": 36}', []),
        ('{"tool_calls": []}', []),
        ("The weather is fine.", []),
        ("<tool_call>weather</tool_call>", []),
        ("", []),
    ],
)
def test_calls_are_read(text: str, calls: list[Call]) -> None:
    assert calls_in(text) == calls


@pytest.mark.parametrize(
    ("given_calls", "wanted", "full", "name", "arguments"),
    [
        ([WEATHER], [WEATHER], 1.0, 1.0, 1.0),
        ([TIME, WEATHER], [WEATHER, TIME], 1.0, 1.0, 1.0),
        ([{"name": "weather", "arguments": {"days": 3.0, "city": "北京"}}], [WEATHER], 1.0, 1.0, 1.0),
        ([{"name": "weather", "arguments": {"city": "上海", "days": 3}}], [WEATHER], 0.0, 1.0, 0.5),
        ([{"name": "weather", "arguments": {"city": "北京"}}], [WEATHER], 0.0, 1.0, 2 / 3),
        ([{"name": "weather", "arguments": {"city": "北京", "days": "3"}}], [WEATHER], 0.0, 1.0, 0.5),
        ([{"name": "forecast", "arguments": WEATHER["arguments"]}], [WEATHER], 0.0, 0.0, 0.0),
        ([WEATHER, WEATHER], [WEATHER], 0.0, 0.0, 2 / 3),
        ([], [WEATHER], 0.0, 0.0, 0.0),
        ([WEATHER], [], 0.0, 0.0, 0.0),
        ([], [], 1.0, 1.0, 1.0),
        ([TIME], [TIME], 1.0, 1.0, 1.0),
    ],
)
def test_matching(given_calls: list[Any], wanted: list[Any], full: float, name: float, arguments: float) -> None:
    answer = Answer(tags(*given_calls) or "Nothing to call.")
    for target in (Target(openai(*wanted)), Target("", meta={"tool_calls": wanted})):
        found = [
            score(answer, target, Config.model_validate({"measure": m})).value for m in ("full", "name", "arguments")
        ]
        assert found == pytest.approx([full, name, arguments])


def test_the_order_can_matter() -> None:
    answer, target = Answer(tags(TIME, WEATHER)), Target(tags(WEATHER, TIME))
    assert score(answer, target, Config(ordered=True)).value == 0.0
    assert score(answer, target, Config(ordered=True, measure="name")).value == 0.0
    assert score(Answer(target.text), target, Config(ordered=True)).value == 1.0


def test_the_detail_says_what_is_missing_and_what_is_too_much() -> None:
    detail = score(Answer(tags(TIME)), Target(tags(WEATHER)), Config()).detail
    assert detail == {
        "calls": ['["time", {}]'],
        "missing": ['["weather", {"city": "北京", "days": 3}]'],
        "extra": ['["time", {}]'],
    }


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    max_leaves=6,
)
CALLS = st.lists(
    st.builds(
        lambda n, a: {"name": n, "arguments": a}, st.text(min_size=1), st.dictionaries(st.text(), VALUES, max_size=3)
    ),
    max_size=3,
)


@given(CALLS)
def test_every_way_of_writing_gives_the_same_calls(calls: list[dict[str, Any]]) -> None:
    for text in (openai(*calls), json.dumps(calls)):
        assert score(Answer(text), Target("", meta={"tool_calls": calls}), Config(ordered=True)).value == 1.0
    if calls and not any("tool_call>" in json.dumps(c) for c in calls):
        assert score(Answer(tags(*calls)), Target(openai(*calls)), Config(ordered=True)).value == 1.0


@given(st.text(alphabet=st.sampled_from(list('{}[]":, <>/tool_calnamergus123\n'))))
def test_anything_is_read(text: str) -> None:
    assert score(Answer(text), Target(text), Config()).value == 1.0


def test_arguments_that_are_nested_too_deep_are_one_wrong_value() -> None:
    deep = '{"name": "f", "arguments": {"a": ' + "[" * 150 + "]" * 150 + "}}"
    assert calls_in(deep) == [Call("f", "(nested too deep)")]
    assert score(Answer(deep), Target('{"name": "f", "arguments": {"a": []}}'), Config()).value == 0.0
