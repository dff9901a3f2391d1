from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from luthier.gateway.wire import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    FeedbackRequest,
    RequestError,
    error_body,
    explain,
)

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def parse(kind: Any, body: Any) -> Any:
    return kind.model_validate_json(json.dumps(body))


def refusal(kind: Any, body: Any) -> RequestError:
    with pytest.raises(ValidationError) as raised:
        parse(kind, body)
    return explain(raised.value, kind)


def test_a_plain_request() -> None:
    body = parse(ChatRequest, HELLO | {"temperature": 0, "stop": "x", "max_tokens": 5, "n": None, "user": "u"})
    assert (body.temperature, body.stop, body.limit(), body.n, body.user) == (0.0, ["x"], 5, 1, "u")
    assert body.messages[0].message().as_dict() == {"role": "user", "content": "hello"}


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = parse(ChatRequest, {"model": "m", "messages": [{"role": "developer", "content": parts}]})
    assert body.messages[0].message().as_dict() == {"role": "system", "content": "a\nb"}


def test_an_answer_can_be_sent_back_as_the_client_dumps_it() -> None:
    message = {
        "role": "assistant", "content": "hi", "refusal": None, "annotations": None, "audio": None,
        "function_call": None, "tool_calls": None,
    }  # fmt: skip
    assert parse(ChatRequest, {"model": "m", "messages": [message]}).messages[0].content == "hi"


@pytest.mark.parametrize(
    ("extra", "param", "words"),
    [
        ({"temprature": 1}, "temprature", "'temperature'"),
        ({"max_token": 1}, "max_token", "'max_tokens'"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "send 0"),
        ({"frequency_penalty": -1}, "frequency_penalty", "send 0"),
        ({"response_format": {"type": "json_object"}}, "response_format", '{"type": "text"}'),
        ({"temperature": 2.5}, "temperature", "2.5"),
        ({"temperature": "1"}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 9}, "n", "8"),
        ({"n": 0}, "n", "1"),
        ({"n": True}, "n", "integer"),
        ({"seed": 1.5}, "seed", "integer"),
        ({"stop": ["a", ""]}, "stop", "empty"),
        ({"stop": ["a"] * 17}, "stop", "16"),
        ({"max_tokens": 0}, "max_tokens", "1"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "different"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"stream": True, "stream_options": {"include_use": True}}, "stream_options.include_use", "'include_usage'"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hello"}, "messages", "array"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "robot"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "tool"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "null"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages[0].name", "not supported"),
        ({"messages": [{"role": "user", "content": "x", "contents": "y"}]}, "messages[0].contents", "'content'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}]},
            "messages[0].content",
            "part 1 .*image_url",
        ),
        ({"model": None}, "model", "string"),
    ],
)
def test_what_is_refused_is_named(extra: dict[str, Any], param: str, words: str) -> None:
    import re

    error = refusal(ChatRequest, HELLO | extra)
    assert error.http_status == 400
    assert error.param == param
    assert re.search(words, error.message)
    assert param in error.message


@pytest.mark.parametrize("field", sorted(ChatRequest.neutral))
def test_fields_that_do_nothing_pass(field: str) -> None:
    for value in (None, *ChatRequest.neutral[field]):
        parse(ChatRequest, HELLO | {field: value})


def test_every_problem_is_said_and_a_missing_model_too() -> None:
    error = refusal(ChatRequest, {"messages": HELLO["messages"], "n": 0, "seed": "x"})
    assert all(name in error.message for name in ("model", "n:", "seed"))


@pytest.mark.parametrize("body", ["", "{", "[]", "3", '{"a": "\\ud800"}', "[" * 5000])
def test_what_is_no_json_object_is_said(body: str) -> None:
    with pytest.raises(ValidationError) as raised:
        ChatRequest.model_validate_json(body)
    error = explain(raised.value, ChatRequest)
    assert (error.param, error.code) == (None, "invalid_json")
    assert "JSON object" in error.message


def test_completions() -> None:
    assert parse(CompletionRequest, {"model": "m", "prompt": "a"}).prompt == ["a"]
    for extra, param in [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 1}, "logprobs"),
    ]:
        assert refusal(CompletionRequest, {"model": "m", "prompt": "a"} | extra).param == param


def test_embeddings() -> None:
    assert parse(EmbeddingRequest, {"model": "m", "input": "a", "encoding_format": "base64"}).input == ["a"]
    for extra, param in [
        ({"input": [[1, 2]]}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
    ]:
        assert refusal(EmbeddingRequest, {"model": "m", "input": "a"} | extra).param == param


def test_feedback() -> None:
    assert parse(FeedbackRequest, {"trace_id": "t", "rating": -1}).rating == -1
    assert refusal(FeedbackRequest, {"trace_id": "t", "rating": 2}).param == "rating"
    assert refusal(FeedbackRequest, {"rating": 1}).param == "trace_id"


def test_error_body_types() -> None:
    assert error_body("no", 429, param="p", code="c") == {
        "error": {"message": "no", "type": "rate_limit_error", "param": "p", "code": "c"}
    }
    assert error_body("no", 418)["error"]["type"] == "invalid_request_error"
    assert error_body("no", 507)["error"]["type"] == "server_error"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(sorted({*ChatRequest.model_fields, *ChatRequest.neutral, "nonsense"}))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(fields, anything, max_size=5))
def test_any_body_is_read_or_refused_in_words(extra: dict[str, Any]) -> None:
    try:
        body = json.dumps(HELLO | extra)
    except ValueError:  # a lone surrogate
        return
    try:
        ChatRequest.model_validate_json(body)
    except ValidationError as error:
        refused = explain(error, ChatRequest)
        assert refused.message
        assert error_body(refused.message, refused.http_status, param=refused.param, code=refused.code)
