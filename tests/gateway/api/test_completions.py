from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from luthier.gateway.api.completions import CompletionRequest
from luthier.gateway.api.wire import RequestError, read
from luthier.store.traces import find_trace


def test_a_completion(server: Any) -> None:
    answer = server.client().completions.create(model="fake", prompt="once upon", temperature=0)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.usage.prompt_tokens == 2


def test_the_prompt_is_raw_text(start: Any, scripted: Any) -> None:
    engine = scripted()
    server = start({"m": engine})
    server.client().completions.create(model="m", prompt="once upon")
    prompt, sampling = engine.asked[0]
    assert prompt == "once upon"
    assert sampling.max_new_tokens == 16


def test_several_prompts_are_one_batch_with_a_trace_each(start: Any, scripted: Any) -> None:
    engine = scripted()
    server = start({"m": engine})
    answer = server.client().completions.create(model="m", prompt=["a", "b"], n=2, temperature=1)
    assert engine.batches == [4]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 4  # 2 for each prompt, not for each choice
    assert answer.usage.completion_tokens == 12
    httpx.get(f"{server.base_url}/traces/{answer.id}").raise_for_status()
    asked = [find_trace(server.store, choice.trace_id).messages[0]["content"] for choice in answer.choices]
    assert asked == ["a", "a", "b", "b"]


def test_a_streamed_completion(server: Any) -> None:
    client = server.client()
    whole = client.completions.create(model="fake", prompt=["x", "y"], temperature=0, max_tokens=3)
    texts = ["", ""]
    for chunk in client.completions.create(model="fake", prompt=["x", "y"], temperature=0, max_tokens=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


def test_what_is_refused_is_named() -> None:
    asked: list[tuple[dict[str, Any], str, str]] = [
        ({"prompt": [1, 2]}, "prompt", "token ids are not accepted"),
        ({"prompt": [[1, 2]]}, "prompt", "token ids are not accepted"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "1 to 64"),
        ({"prompt": None}, "prompt", "null"),
        ({"prompt": ["a"] * 65}, "prompt", "65"),
        ({"prompt": ["a"] * 64, "n": 32}, "n", "at most 256"),
        ({"best_of": 2}, "best_of", "send 1"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"logprobs": 21}, "logprobs", "20"),
        ({"logprobs": True}, "logprobs", "integer"),
        ({"echo": True, "logprobs": 1}, "echo", "of the prompt"),
        ({"messages": []}, "messages", "not a known field"),
    ]
    for fields, param, words in asked:
        with pytest.raises(RequestError) as raised:
            read(json.dumps({"model": "m", "prompt": "a", **fields}).encode(), CompletionRequest)
        assert (raised.value.http_status, raised.value.param) == (400, param)
        assert words in raised.value.message


@pytest.mark.parametrize("logprobs", [0, 2])
def test_log_probabilities(server: Any, logprobs: int) -> None:
    client = server.client()
    ask = {"model": "fake", "prompt": "once upon", "temperature": 0, "max_tokens": 6, "logprobs": logprobs}
    choice = client.completions.create(**ask).choices[0]
    said = choice.logprobs
    assert "".join(said.tokens) == choice.text
    assert all(choice.text[at:].startswith(token) for token, at in zip(said.tokens, said.text_offset, strict=True))
    assert len(said.token_logprobs) == len(said.tokens)
    if logprobs:
        assert all(len(top) == 2 and token in top for token, top in zip(said.tokens, said.top_logprobs, strict=True))
    else:
        assert said.top_logprobs is None
    chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(**ask, stream=True)]
    assert [token for each in chunks if each for token in each.tokens] == said.tokens
    assert [at for each in chunks if each for at in each.text_offset] == said.text_offset


def test_echo_puts_the_prompt_before_its_answers(server: Any) -> None:
    client = server.client()
    ask = {"model": "fake", "prompt": ["x", "y"], "temperature": 0, "max_tokens": 3, "n": 2}
    plain = [choice.text for choice in client.completions.create(**ask).choices]
    echoed = [choice.text for choice in client.completions.create(**ask, echo=True).choices]
    assert echoed == [prompt + text for prompt, text in zip("xxyy", plain, strict=True)]
    texts = [""] * 4
    for chunk in client.completions.create(**ask, echo=True, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == echoed
