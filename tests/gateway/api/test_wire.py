from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.gateway.api.chat import ChatRequest
from luthier.gateway.api.completions import CompletionRequest
from luthier.gateway.api.embeddings import EmbeddingRequest
from luthier.gateway.api.feedback import FeedbackRequest
from luthier.gateway.api.wire import RequestError, error_body, read, require_shallow

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
ASK = {"model": "m", "prompt": "a"}


def parse(kind: Any, body: Any) -> Any:
    return read(json.dumps(body).encode(), kind)


def refusal(kind: Any, body: Any) -> RequestError:
    with pytest.raises(RequestError) as raised:
        parse(kind, body)
    return raised.value


def test_a_plain_request() -> None:
    body = parse(ChatRequest, HELLO | {"temperature": 0, "stop": "x", "max_tokens": 5, "n": None, "user": "u"})
    sampling, unset = body.sampling()
    assert (sampling.temperature, sampling.stop, sampling.max_new_tokens, body.n, body.user) == (0.0, ("x",), 5, 1, "u")
    assert unset == frozenset()
    assert body.messages[0].as_dict() == {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("extra", "param", "words"),
    [
        ({"temprature": 1}, "temprature", "'temperature'"),
        ({"temprature": None}, "temprature", "'temperature'"),
        ({"max_token": 1}, "max_token", "'max_tokens'"),
        ({"functions": [{"name": "f"}]}, "functions", r"not supported.*send \[\]"),
        ({"function_call": {"name": "f"}}, "function_call", "not supported"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
        ({"store": True}, "store", "send false"),
        ({"store": 0}, "store", "send false"),
        ({"service_tier": "flex"}, "service_tier", "auto"),
        ({"temperature": 2.5}, "temperature", "2.5"),
        ({"temperature": "1"}, "temperature", "number"),
        ({"temperature": True}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 33}, "n", "32"),
        ({"n": 1_000_000}, "n", "32.*1000000"),
        ({"n": 0}, "n", "1"),
        ({"n": True}, "n", "integer"),
        ({"seed": 1.5}, "seed", "integer"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"n": 2.5}, "n", "integer"),
        ({"n": "2"}, "n", "integer"),
        ({"max_tokens": 0}, "max_tokens", "1"),
        ({"max_tokens": 10**18}, "max_tokens", "less than"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "different"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"stream": True, "stream_options": {"include_use": True}}, "stream_options.include_use", "'include_usage'"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", "false"),
        ({"stream": True, "stream_options": 5}, "stream_options", "dictionary"),
        ({"model": None}, "model", "string"),
        ({"model": "m" * 513}, "model", "512"),
        ({"x" * 100_000: 1}, "x" * 80, "not a known field"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(extra: dict[str, Any], param: str, words: str) -> None:
    error = refusal(ChatRequest, HELLO | extra)
    assert error.http_status == 400
    assert error.param == param
    assert re.search(words, error.message)
    assert param in error.message
    assert len(error.message) < 2000


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_fields_that_do_nothing_pass(kind: Any) -> None:
    start = HELLO if kind is ChatRequest else ASK
    for field in kind.neutral:
        for value in (None, *kind.neutral[field]):
            parse(kind, start | {field: value})


def test_null_is_as_good_as_left_out() -> None:
    null = {name: None for name in ChatRequest.model_fields if name not in ("model", "messages")}
    assert parse(ChatRequest, HELLO | null) == parse(ChatRequest, HELLO)


def test_whole_numbers_may_have_a_point() -> None:
    body = parse(ChatRequest, HELLO | {"n": 2.0, "max_tokens": 7.0, "seed": 3.0})
    assert (body.n, body.max_tokens, body.seed) == (2, 7, 3)


def test_every_problem_is_said_and_a_missing_model_too() -> None:
    error = refusal(ChatRequest, {"messages": HELLO["messages"], "n": 0, "seed": "x"})
    assert all(name in error.message for name in ("model", "n:", "seed"))


def test_thousands_of_unknown_fields_are_refused_without_ado() -> None:
    error = refusal(ChatRequest, HELLO | {f"field{number}": number for number in range(50_000)})
    assert "50002 fields" in error.message
    assert len(error.message) < 500


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b"null", b'"text"', b'{"a": "\\ud800"}', b'{"a": "\xff"}', b"\xef\xbb\xbf{}",
        b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}', b"{'a': 1}", b'{"a": 1,}', b"{} {}", b"[" * 100_000,
        b'{"a":' * 100_000, "{\"a\": \"ä\"}".encode("utf-16"), b'{"a": "\x00"}',
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_said(body: bytes) -> None:
    with pytest.raises(RequestError) as raised:
        read(body, ChatRequest)
    assert (raised.value.http_status, raised.value.param, raised.value.code) == (400, None, "invalid_json")
    assert "JSON object" in raised.value.message


def test_of_a_name_that_occurs_twice_the_last_one_counts() -> None:
    body = b'{"model": "a", "messages": [{"role": "user", "content": "x", "content": "y"}], "model": "b"}'
    request = read(body, ChatRequest)
    assert (request.model, request.messages[0].content) == ("b", "y")


def test_depth_is_bounded() -> None:
    deep: Any = 1
    for _ in range(64):
        deep = {"a": [deep]}
    with pytest.raises(Exception, match="nested deeper than 64"):
        require_shallow(deep, ".x")
    require_shallow({"a": [{"b": [1] * 1000}] * 1000}, ".x")


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
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
bodies = {ChatRequest: HELLO, CompletionRequest: ASK, EmbeddingRequest: {"model": "m", "input": "x"}}


@pytest.mark.parametrize("kind", bodies)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_body_is_read_or_refused_in_words(kind: Any, data: st.DataObject) -> None:
    fields = st.sampled_from(sorted({*kind.model_fields, *kind.neutral, "nonsense"}))
    extra = data.draw(st.dictionaries(fields, anything, max_size=5))
    try:
        content = json.dumps(bodies[kind] | extra).encode()
    except ValueError:  # a lone surrogate
        return
    try:
        read(content, kind)
    except RequestError as refused:
        assert refused.http_status == 400
        assert refused.message
        assert error_body(refused.message, refused.http_status, param=refused.param, code=refused.code)
