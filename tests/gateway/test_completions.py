from __future__ import annotations

from typing import Any

import httpx

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
