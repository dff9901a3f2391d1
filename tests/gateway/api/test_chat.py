"""The official client against a real server."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from luthier.core.engine import Delta, Generation
from luthier.core.message import ToolCall
from luthier.store.traces import find_trace

PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\nrest").decode()

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
        stop=["x", "y"], max_tokens=9, user="u-1", metadata={"session_id": "s-1"},
        extra_body={"top_k": 5, "repetition_penalty": 1.25},
    )  # fmt: skip
    (prompt, sampling) = engine.asked[0]
    assert [(m.role, m.content) for m in prompt] == [("system", "s"), ("user", HELLO[0]["content"])]
    expected = {
        "max_new_tokens": 9, "temperature": 0.3, "top_p": 0.8, "top_k": 5, "repetition_penalty": 1.25, "seed": 11,
    }  # fmt: skip
    assert {name: getattr(sampling, name) for name in expected} == expected
    assert sampling.stop == ("x", "y")
    trace = find_after_flush(server, answer.id)
    about = {"n": 1, "stream": False, "user": "u-1", "metadata": {"session_id": "s-1"}}
    assert trace.parameters == {**expected, "stop": ["x", "y"], **about}
    assert trace.session == "s-1"
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


def test_what_an_engine_cannot_do_is_a_400_that_names_the_field(start: Any, scripted: Any) -> None:
    engine = scripted()
    client = start({"m": engine}).client()
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    asked: list[tuple[dict[str, Any], str]] = [
        ({"tools": [tool]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"guided_regex": "a"}}, "guided_regex"),
        ({"extra_body": {"beams": 2}}, "beams"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]}, "messages"),
    ]
    for fields, param in asked:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as refused:
                client.chat.completions.create(**{"model": "m", "messages": HELLO, "stream": stream, **fields})
            assert (refused.value.param, refused.value.body["code"]) == (param, "unsupported_value")
            assert "engine scripted" in str(refused.value)
            assert "top_k" in str(refused.value)  # what it does support
    assert engine.asked == []


def test_log_probabilities(server: Any) -> None:
    client = server.client()
    ask = {"model": "fake", "messages": HELLO, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**ask).choices[0]
    tokens = whole.logprobs.content
    assert "".join(token.token for token in tokens) == whole.message.content
    assert all(bytes(token.bytes).decode() == token.token for token in tokens)
    assert all(len(token.top_logprobs) == 2 and token.top_logprobs[0].token == token.token for token in tokens)
    streamed = []
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            if choice.delta.content:
                assert "".join(token.token for token in choice.logprobs.content) == choice.delta.content
            streamed += choice.logprobs.content if choice.logprobs else []
    assert streamed == tokens
    plain = client.chat.completions.create(**(ask | {"logprobs": False, "top_logprobs": None})).choices[0]
    assert plain.logprobs is None


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def caller(start: Any, make_fake: Any) -> Any:
    """A client of a model that calls ``weather`` twice when it is asked for the weather."""
    calls = {"weather": ({"name": "weather", "arguments": {"city": "Ulm"}}, {"name": "weather", "arguments": "{}"})}
    return start({"m": make_fake("m", tool_calls=calls)}).client()


def test_tool_calls(caller: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": "the weather?"}]
    choice = caller.chat.completions.create(model="m", messages=messages, tools=[WEATHER]).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert [call.function.arguments for call in choice.message.tool_calls] == ['{"city": "Ulm"}', "{}"]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    messages.append(choice.message)
    for call in choice.message.tool_calls:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "rain"})
    after = caller.chat.completions.create(model="m", messages=messages, tools=[WEATHER]).choices[0]
    assert (after.finish_reason, after.message.tool_calls) == ("stop", None)
    alone = caller.chat.completions.create(
        model="m", messages=messages[:1], tools=[WEATHER], parallel_tool_calls=False
    )  # fmt: skip
    assert len(alone.choices[0].message.tool_calls) == 1


def test_streamed_tool_calls(caller: Any) -> None:
    ask = {"model": "m", "messages": [{"role": "user", "content": "the weather?"}], "tools": [WEATHER]}
    whole = caller.chat.completions.create(**ask).choices[0].message.tool_calls
    deltas = [
        call
        for chunk in caller.chat.completions.create(**ask, stream=True)
        for call in chunk.choices[0].delta.tool_calls or ()
    ]
    assert [delta.index for delta in deltas] == [0, 1]
    assert [(d.id, d.function.name, d.function.arguments) for d in deltas] == [
        (call.id, call.function.name, call.function.arguments) for call in whole
    ]


def test_calls_that_an_engine_says_only_at_the_end(start: Any, scripted: Any) -> None:
    """They are streamed all the same, once, with ids where it gave none."""
    made = Generation("one", (1,), (1,), "tool_calls", tool_calls=(ToolCall("f", "{}"), ToolCall("g", "{}", "own")))

    class Late(scripted):  # type: ignore[misc]
        def stream(self, prompt: Any, sampling: Any) -> Any:
            yield Delta("one")
            yield Delta("", tool_calls=made.tool_calls[:1])
            yield Delta("", made)

    client = start({"m": Late(parameters=("tools",))}).client()
    tools = [{"type": "function", "function": {"name": name}} for name in "fg"]
    chunks = list(client.chat.completions.create(model="m", messages=HELLO, tools=tools, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(call.index, call.function.name) for call in calls] == [(0, "f"), (1, "g")]
    assert calls[0].id.startswith("call_")
    assert calls[1].id == "own"
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_fingerprint_tells_models_apart(server: Any) -> None:
    client = server.client()
    prints = {
        model: client.chat.completions.create(model=model, messages=HELLO).system_fingerprint
        for model in ("fake", "desk", "fake")
    }
    assert len(set(prints.values())) == 2
    chunk = next(iter(client.chat.completions.create(model="fake", messages=HELLO, stream=True)))
    assert chunk.system_fingerprint == prints["fake"]
    assert prints["fake"].startswith("fp_")


def test_images_reach_the_engine(server: Any) -> None:
    content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": PNG}}]
    answer = server.client().chat.completions.create(
        model="fake", messages=[{"role": "user", "content": content}], temperature=0
    )
    assert answer.choices[0].message.content.startswith("1 image:")
    trace = find_after_flush(server, answer.id)
    assert PNG not in str(trace)
    assert "sha256=" in str(trace.messages)


@pytest.mark.parametrize("stream", [False, True])
def test_a_form_is_kept(server: Any, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "size": {"type": "integer", "minimum": 3}},
        "required": ["name", "size"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
    made = server.client().chat.completions.create(
        model="fake", messages=HELLO, response_format=form, stream=stream, temperature=0
    )
    text = "".join(c.choices[0].delta.content or "" for c in made) if stream else made.choices[0].message.content
    jsonschema.validate(json.loads(text), schema)


def test_cached_tokens_are_told(start: Any, scripted: Any) -> None:
    class Cached(scripted):  # type: ignore[misc]
        def _generation(self) -> Generation:
            return replace(super()._generation(), prompt_tokens=10, cached_tokens=7)

    answer = start({"m": Cached()}).client().chat.completions.create(model="m", messages=HELLO)
    assert answer.usage.prompt_tokens_details.cached_tokens == 7


def find_after_flush(server: Any, trace_id: str) -> Any:
    httpx.get(f"{server.base_url}/traces/{trace_id}").raise_for_status()
    return find_trace(server.store, trace_id)
