"""The official client against a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

from luthier.store.traces import find_trace

HELLO = [{"role": "user", "content": "where is my parcel?"}]


def test_an_answer(server: Any) -> None:
    answer = server.client().chat.completions.create(model="fake", messages=HELLO, temperature=0)
    choice = answer.choices[0]
    assert (answer.object, answer.model) == ("chat.completion", "fake")
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert choice.message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == len(choice.message.content.split())
    again = server.client().chat.completions.create(model="fake", messages=HELLO, temperature=0)
    assert again.choices[0].message.content == choice.message.content
    assert again.id != answer.id


def test_a_streamed_answer_is_the_same_text(server: Any) -> None:
    client = server.client()
    whole = client.chat.completions.create(model="fake", messages=HELLO, temperature=0)
    options = {"include_usage": True}
    with client.chat.completions.create(
        model="fake", messages=HELLO, temperature=0, stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_bytes_of_a_stream(server: Any) -> None:
    body = {"model": "fake", "messages": HELLO, "stream": True}
    answer = httpx.post(f"{server.base_url}/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    assert '"usage"' not in answer.text  # it was not asked for
    assert find_after_flush(server, answer.headers["x-luthier-trace-id"]).answer


def test_the_stream_helper_of_the_client(server: Any) -> None:
    with server.client().chat.completions.stream(model="fake", messages=HELLO, temperature=0) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content


def test_the_async_client(server: Any) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="x", max_retries=0) as client:
            whole = await client.chat.completions.create(model="fake", messages=HELLO, temperature=0)
            text = ""
            async for chunk in await client.chat.completions.create(
                model="fake", messages=HELLO, temperature=0, stream=True
            ):
                text += chunk.choices[0].delta.content or ""
            return whole.choices[0].message.content or "", text

    whole, text = asyncio.run(ask())
    assert whole == text != ""


@pytest.mark.parametrize("stream", [False, True])
def test_n_choices(server: Any, stream: bool) -> None:
    client = server.client()
    ask = {"model": "fake", "messages": HELLO, "n": 4, "seed": 3, "temperature": 1.0}
    if stream:
        texts: dict[int, str] = {}
        reasons: dict[int, str] = {}
        for chunk in client.chat.completions.create(**ask, stream=True):
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                if choice.finish_reason:
                    reasons[choice.index] = choice.finish_reason
        assert set(reasons.values()) == {"stop"}
        found = [texts[index] for index in range(4)]
    else:
        found = [choice.message.content for choice in client.chat.completions.create(**ask).choices]
    assert len(set(found)) > 1
    first = client.chat.completions.create(**(ask | {"n": 1})).choices[0].message.content
    assert found[0] == first
    second = client.chat.completions.create(**(ask | {"n": 1, "seed": 4})).choices[0].message.content
    assert found[1] == second


def test_each_choice_has_a_trace_of_its_own(server: Any) -> None:
    answer = server.client().chat.completions.create(model="fake", messages=HELLO, n=3, seed=1, temperature=1)
    ids = [choice.trace_id for choice in answer.choices]
    assert ids == [answer.id, f"{answer.id}.1", f"{answer.id}.2"]
    for choice in answer.choices:
        trace = find_after_flush(server, choice.trace_id)
        assert trace.answer == choice.message.content
        assert trace.completion_tokens == len(choice.message.content.split())
    completion = sum(find_after_flush(server, each).completion_tokens for each in ids)
    assert answer.usage.completion_tokens == completion


def test_max_tokens_and_stop(server: Any) -> None:
    client = server.client()
    ask = {"model": "fake", "messages": HELLO, "temperature": 0}
    words = client.chat.completions.create(**ask).choices[0].message.content.split()
    cut = client.chat.completions.create(**ask, max_tokens=2).choices[0]
    assert (cut.message.content, cut.finish_reason) == (" ".join(words[:2]), "length")
    newer = client.chat.completions.create(**ask, max_completion_tokens=2).choices[0]
    assert newer.message.content == cut.message.content
    stopped = client.chat.completions.create(**ask, stop=[words[2]]).choices[0]
    assert (stopped.message.content.split(), stopped.finish_reason) == (words[:2], "stop")


def test_every_parameter_reaches_the_engine_and_the_trace(start: Any, scripted: Any) -> None:
    engine = scripted()
    server = start({"m": engine})
    answer = server.client().chat.completions.create(
        model="m", messages=[{"role": "system", "content": "s"}, *HELLO], temperature=0.3, top_p=0.8, seed=11,
        stop=["x", "y"], max_tokens=9, user="u-1", extra_body={"top_k": 5, "repetition_penalty": 1.25},
    )  # fmt: skip
    (prompt, sampling) = engine.asked[0]
    assert [(m.role, m.content) for m in prompt] == [("system", "s"), ("user", HELLO[0]["content"])]
    expected = {
        "max_new_tokens": 9, "temperature": 0.3, "top_p": 0.8, "top_k": 5, "repetition_penalty": 1.25, "seed": 11,
    }  # fmt: skip
    assert {name: getattr(sampling, name) for name in expected} == expected
    assert sampling.stop == ("x", "y")
    trace = find_after_flush(server, answer.id)
    assert trace.parameters == {**expected, "stop": ["x", "y"], "n": 1, "stream": False, "user": "u-1"}
    assert [dict(m) for m in trace.messages] == [{"role": "system", "content": "s"}, *HELLO]


def test_the_default_temperature(start: Any, scripted: Any, make_fake: Any) -> None:
    """1.0 for a free model, as OpenAI's; greedy for one that answers a closed set of labels."""
    free = scripted()
    server = start({"free": free, "desk": make_fake("desk", labels=("a", "b"))})
    server.client().chat.completions.create(model="free", messages=HELLO)
    assert free.asked[0][1].temperature == 1.0
    assert free.asked[0][1].max_new_tokens == 256
    labelled = server.client().chat.completions.create(model="desk", messages=HELLO)
    assert find_after_flush(server, labelled.id).parameters["temperature"] == 0.0


def test_what_the_client_raises(server: Any) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="fak", messages=HELLO)
    assert unknown.value.body["param"] == "model"
    assert unknown.value.body["code"] == "model_not_found"
    assert "desk" in str(unknown.value)
    assert "fake" in str(unknown.value)
    with pytest.raises(openai.BadRequestError, match="at least one user turn"):
        client.chat.completions.create(model="fake", messages=[{"role": "system", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="8192"):
        client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x " * 9000}])
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="fake", messages=HELLO, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]
        )
    assert tools.value.param == "tools"


def find_after_flush(server: Any, trace_id: str) -> Any:
    httpx.get(f"{server.base_url}/traces/{trace_id}").raise_for_status()
    return find_trace(server.store, trace_id)
