from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.core.message import Image, Message, ToolCall
from luthier.gateway.api.items import check_turns, read_input
from luthier.gateway.api.responses import ResponseRequest
from luthier.gateway.api.wire import RequestError, read

CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "rain"}


def test_text_is_a_user_turn() -> None:
    assert read_input("hello") == (Message("user", "hello"),)


def test_items_are_turns_calls_and_outputs() -> None:
    said = {
        "type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
        "content": [{"type": "output_text", "text": "let me see", "annotations": [], "logprobs": []}],
    }  # fmt: skip
    second = CALL | {"call_id": "c2", "id": "fc_2", "status": "completed"}
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "https://example.com/a.png"}]
    messages = read_input(
        [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}, said, CALL, second, OUTPUT]
    )
    calls = (ToolCall("f", "{}", "c1"), ToolCall("f", "{}", "c2"))
    assert messages == (
        Message("system", "s"),
        Message("user", "a", images=(Image("https://example.com/a.png", at=1),)),
        Message("assistant", "let me see", calls),
        Message("tool", "rain", tool_call_id="c1"),
    )
    check_turns(messages)


@pytest.mark.parametrize(
    ("value", "param", "words"),
    [
        (5, "input", "text or a list"),
        ([], "input", "1 to"),
        (["x"], "input[0]", "object"),
        ([{"type": "item_reference", "id": "x"}], "input[0].type", "item_reference"),
        ([{"type": "reasoning", "summary": []}], "input[0].type", "reasoning"),
        ([{"role": "tool", "content": "x"}], "input[0].role", "developer, user"),
        ([{"role": "user"}], "input[0].content", "null"),
        ([{"role": "user", "content": "x", "name": "n"}], "input[0].name", "not a known field"),
        ([{"role": "user", "content": [{"type": "input_file"}]}], "input[0].content[0].type", "input_file"),
        ([CALL | {"arguments": {}}], "input[0].arguments", "JSON as text"),
        ([CALL | {"call_id": None}], "input[0].call_id", "text"),
        ([OUTPUT | {"output": 5}], "input[0].output", "got 5"),
        (
            [OUTPUT | {"output": [{"type": "input_image", "image_url": "https://example.com/a.png"}]}],
            "input[0].output[0]",
            "user turns only",
        ),
    ],
)
def test_what_is_refused_is_named(value: Any, param: str, words: str) -> None:
    with pytest.raises(RequestError) as raised:
        read(json.dumps({"model": "m", "input": value}).encode(), ResponseRequest)
    assert (raised.value.http_status, raised.value.param) == (400, param)
    assert words in raised.value.message


@pytest.mark.parametrize(("items", "words"), [([OUTPUT], "previous_response_id"), ([CALL, OUTPUT], "user turn")])
def test_turns_that_no_model_can_be_asked(items: list[Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check_turns(read_input(items))
