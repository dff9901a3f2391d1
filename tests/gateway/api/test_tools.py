from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.gateway.api.chat import ChatRequest
from luthier.gateway.api.tools import read_choice, read_tools
from luthier.gateway.api.wire import RequestError, read

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather", "description": "Look outside.", "strict": True,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}  # fmt: skip
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}


def ask(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return read(json.dumps(body).encode(), ChatRequest)


def tool(**changes: Any) -> dict[str, Any]:
    return {"type": "function", "function": WEATHER["function"] | changes}


def test_tools_reach_the_sampling() -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    sampling, _ = ask(tools=[WEATHER], tool_choice=named, parallel_tool_calls=False).sampling()
    (read_tool,) = sampling.tools
    assert (read_tool.name, read_tool.description, read_tool.strict) == ("weather", "Look outside.", True)
    assert json.loads(read_tool.parameters) == WEATHER["function"]["parameters"]
    assert (sampling.tool_choice, sampling.parallel_tool_calls) == ("weather", False)
    assert read_tool.as_dict() == WEATHER


def test_the_form_of_the_responses_api() -> None:
    assert read_tools([{"type": "function", **WEATHER["function"]}]) == read_tools([WEATHER])
    assert read_choice({"type": "function", "name": "weather"}) == "weather"


def test_parameters_may_be_left_out() -> None:
    (bare,) = read_tools([{"type": "function", "function": {"name": "now"}}])
    assert json.loads(bare.parameters) == {"type": "object", "properties": {}}
    assert not bare.strict


def test_a_schema_may_refer_to_itself() -> None:
    assert ask(tools=[tool(parameters=NODE | {"$defs": {"node": NODE}})]).tools


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": {}}, "tools", "list"),
        ({"tools": [WEATHER] * 129}, "tools", "128"),
        ({"tools": ["f"]}, "tools[0]", "object"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "null"),
        ({"tools": [{"type": "function", "function": []}]}, "tools[0].function", "object"),
        ({"tools": [WEATHER | {"extra": 1}]}, "tools[0].extra", "not a known field"),
        ({"tools": [tool(descripton="x")]}, "tools[0].function.descripton", "'description'"),
        ({"tools": [tool(name="")]}, "tools[0].function.name", "1 to 64"),
        ({"tools": [tool(name="a b")]}, "tools[0].function.name", "a b"),
        ({"tools": [tool(name="auto")]}, "tools[0].function.name", "none of none, auto, required"),
        ({"tools": [tool(name="x" * 65)]}, "tools[0].function.name", "64"),
        ({"tools": [tool(strict="yes")]}, "tools[0].function.strict", "true or false"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1]", "earlier tool"),
        ({"tools": [tool(parameters="")]}, "tools[0].function.parameters", "JSON schema"),
        ({"tools": [tool(description=0)]}, "tools[0].function.description", "got 0"),
        ({"tools": [tool(strict="")]}, "tools[0].function.strict", "true or false"),
        ({"tools": [tool(parameters=5)]}, "tools[0].function.parameters", "JSON schema"),
        ({"tools": [tool(parameters={"type": "strin"})]}, "tools[0].function.parameters", '"strin"'),
        ({"tools": [tool(parameters={"$ref": "#"})]}, "tools[0].function.parameters", "without end"),
        (
            {"tools": [tool(parameters={"properties": {"a": {"$ref": "http://10.0.0.1/s.json"}}})]},
            "tools[0].function.parameters",
            "in itself only",
        ),
        (
            {"tools": [tool(parameters={"properties": {"a": {"$ref": "#/$defs/no"}}})]},
            "tools[0].function.parameters",
            "#/$defs/no",
        ),
        ({"tools": [tool(parameters=deep(40))]}, "tools[0].function.parameters", "deeper than 64"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": "sometimes", "tools": [WEATHER]}, "tool_choice", "sometimes"),
        ({"tool_choice": {"type": "custom"}, "tools": [WEATHER]}, "tool_choice.type", "custom"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "wether"}}, "tools": [WEATHER]},
            "tool_choice",
            "'weather'",
        ),
        (
            {"tool_choice": {"type": "function", "function": {"nam": "x"}}, "tools": [WEATHER]},
            "tool_choice.function.nam",
            "'name'",
        ),
        ({"tools": [WEATHER], "parallel_tool_calls": 1}, "parallel_tool_calls", "boolean"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(RequestError) as raised:
        ask(**fields)
    assert (raised.value.http_status, raised.value.param) == (400, param)
    assert words in raised.value.message


def test_choices_that_do_nothing_pass_without_tools() -> None:
    for choice in ("none", "auto", None):
        assert ask(tool_choice=choice).sampling()[0].parameters() == set()
    assert ask(tools=[WEATHER], tool_choice="none").sampling()[0].parameters() == set()
