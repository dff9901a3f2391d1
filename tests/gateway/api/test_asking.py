from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.core.engine import PARAMETERS, Sampling
from luthier.gateway.api.chat import ChatRequest
from luthier.gateway.api.wire import RequestError, read


def ask(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return read(json.dumps(body).encode(), ChatRequest)


def test_every_number_reaches_the_sampling() -> None:
    sampling, unset = ask(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1, presence_penalty=-1, frequency_penalty=2,
        logit_bias={"7": -100, "3": 5}, seed=11, stop=["a", "b"], beams=4, max_tokens=9, logprobs=True, top_logprobs=3,
    ).sampling()  # fmt: skip
    assert sampling == Sampling(
        max_new_tokens=9, temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1, presence_penalty=-1.0,
        frequency_penalty=2.0, logit_bias=((3, 5.0), (7, -100.0)), seed=11, stop=("a", "b"), beams=4, logprobs=3,
    )  # fmt: skip
    assert not unset


def test_what_is_left_out_is_the_model_s() -> None:
    sampling, unset = ask().sampling()
    assert unset == {"temperature", "max_new_tokens"}
    assert sampling == Sampling()


def test_what_does_nothing_asks_for_nothing() -> None:
    off = ask(
        top_k=-1, min_p=0, repetition_penalty=1, presence_penalty=0, frequency_penalty=0.0, logit_bias={}, stop=[], beams=1,
        tools=[], logprobs=False, top_logprobs=0,
    )  # fmt: skip
    assert off.sampling()[0].parameters() == set()


def test_every_parameter_has_a_field_that_asks_for_it() -> None:
    """Whatever an engine lacks can be named in the words of the request."""
    fields = {*ChatRequest.model_fields}
    asked = {
        "json": {"response_format": {"type": "json_object"}}, "json_schema": {"guided_json": {"type": "object"}},
        "regex": {"guided_regex": "a"}, "choice": {"guided_choice": ["a"]}, "grammar": {"guided_grammar": "root ::= 'a'"},
    }  # fmt: skip
    for parameter in PARAMETERS:
        assert ask(**asked.get(parameter, {})).field_of(parameter) in fields


def test_the_session() -> None:
    assert ask().session == ""
    assert ask(user="u").session == "u"
    assert ask(user="u", metadata={"session_id": "s", "other": "x"}).session == "s"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"stop": ["a", ""]}, "stop", "empty"),
        ({"stop": ["a"] * 17}, "stop", "16"),
        ({"stop": ["a"] * 500_000}, "stop", "500000"),
        ({"stop": "x" * 1025}, "stop", "1024"),
        ({"stop": 5}, "stop", "list of texts"),
        ({"stop": [1]}, "stop", "number 0"),
        ({"logit_bias": []}, "logit_bias", "object"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"9" * 30: 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"²": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "101"),
        ({"logit_bias": {"5": True}}, "logit_bias.5", "true"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5", "-100 and 100"),
        ({"logit_bias": {str(n): 1 for n in range(100_000)}}, "logit_bias", "100,000"),
        ({"top_k": -2}, "top_k", "0 or more"),
        ({"top_k": 1.5}, "top_k", "1.5"),
        ({"top_k": True}, "top_k", "true"),
        ({"top_k": 10**12}, "top_k", "whole number"),
        ({"min_p": 1}, "min_p", "less than 1"),
        ({"beams": 17}, "beams", "16"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
        ({"presence_penalty": 2.1}, "presence_penalty", "2.1"),
        ({"frequency_penalty": -3}, "frequency_penalty", "-3"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"logprobs": 3}, "logprobs", "boolean"),
        ({"metadata": "x"}, "metadata", "object"),
        ({"metadata": {"a": 1}}, "metadata.a", "text"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a", "512"),
        ({"metadata": {"a" * 65: "x"}}, "metadata", "64"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "16"),
        ({"user": "u" * 513}, "user", "512"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(RequestError) as raised:
        ask(**fields)
    assert (raised.value.http_status, raised.value.param) == (400, param)
    assert words in raised.value.message
    assert len(raised.value.message) < 500
