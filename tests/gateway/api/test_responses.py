"""The Responses API through the official client."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from luthier.core.engine import Delta, Generation
from luthier.core.errors import EngineError
from luthier.core.message import Message, ToolCall
from luthier.gateway.api.responses import ResponseRequest
from luthier.gateway.api.wire import RequestError, read
from luthier.store.traces import find_trace, record_trace

WEATHER = {
    "type": "function", "name": "weather", "strict": True,
    "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False,
    },
}  # fmt: skip
PNG = "data:image/png;base64,iVBORw0KGgoAAAA="


@pytest.fixture
def caller(start: Any, make_fake: Any) -> Any:
    """A client of a model that calls ``weather`` when it is asked for the weather."""
    calls = {"weather": {"name": "weather", "arguments": {"city": "Ulm"}}}
    return start({"m": make_fake("m", tool_calls=calls)}).client()


def test_an_answer(server: Any) -> None:
    client = server.client()
    response = client.responses.create(
        model="fake", input="where is my parcel?", instructions="be terse", temperature=0, metadata={"a": "b"}, user="u"
    )
    chat = client.chat.completions.create(
        model="fake",
        messages=[{"role": "system", "content": "be terse"}, {"role": "user", "content": "where is my parcel?"}],
        temperature=0,
    )
    assert response.output_text == chat.choices[0].message.content
    assert (response.object, response.status, response.model) == ("response", "completed", "fake")
    assert (response.instructions, response.metadata, response.user) == ("be terse", {"a": "b"}, "u")
    assert (response.temperature, response.top_p, response.error, response.tools) == (0.0, 1.0, None, [])
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    (item,) = response.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")


def test_a_limit_makes_it_incomplete(server: Any) -> None:
    response = server.client().responses.create(model="fake", input="hello", temperature=0, max_output_tokens=2)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output[0].status == "incomplete"
    assert len(response.output_text.split()) == 2


def test_the_events_of_a_stream(server: Any) -> None:
    client = server.client()
    whole = client.responses.create(model="fake", input="hello", temperature=0)
    events = list(client.responses.create(model="fake", input="hello", temperature=0, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert deltas >= 1
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[0].response.status == "in_progress"
    final = events[-1].response
    assert final.output_text == whole.output_text
    assert final.usage == whole.usage
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {final.output[0].id}


def test_the_stream_helper(server: Any) -> None:
    with server.client().responses.stream(model="fake", input="hello", temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_text == text != ""


def test_the_async_client(server: Any) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="x", max_retries=0) as client:
            whole = await client.responses.create(model="fake", input="hello", temperature=0)
            async with client.responses.stream(model="fake", input="hello", temperature=0) as stream:
                final = await stream.get_final_response()
            return whole.output_text, final.output_text

    whole, streamed = asyncio.run(ask())
    assert whole == streamed != ""


class Parcel(BaseModel):
    """What the answer must be."""

    number: int
    city: str


def test_parsed_answers(server: Any) -> None:
    client = server.client()
    parsed = client.responses.parse(model="fake", input="which parcel?", text_format=Parcel)
    assert isinstance(parsed.output_parsed, Parcel)
    with client.responses.stream(model="fake", input="which parcel?", text_format=Parcel) as stream:
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, Parcel)
    assert final.text.format.name == "Parcel"
    assert final.text.format.schema_["required"] == ["number", "city"]


def test_calls_and_their_outputs(caller: Any) -> None:
    first = caller.responses.create(model="m", input="the weather?", tools=[WEATHER])
    (call,) = first.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Ulm"})
    assert first.tools[0].name == "weather"
    said = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    items = [{"role": "user", "content": "the weather?"}, *first.output, said]
    by_items = caller.responses.create(model="m", input=items, tools=[WEATHER], temperature=0)
    assert by_items.output[0].type == "message"
    by_id = caller.responses.create(
        model="m", input=[said], tools=[WEATHER], previous_response_id=first.id, temperature=0
    )  # fmt: skip
    assert by_id.output_text == by_items.output_text
    assert by_id.previous_response_id == first.id


def test_streamed_calls(caller: Any) -> None:
    with caller.responses.stream(model="m", input="the weather?", tools=[WEATHER]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events if "function_call" in event.type]
    assert kinds == ["response.function_call_arguments.delta", "response.function_call_arguments.done"]
    (call,) = final.output
    assert (call.name, call.status) == ("weather", "completed")
    assert json.loads(call.arguments) == {"city": "Ulm"}


def test_text_and_calls_in_one_answer(start: Any, scripted: Any) -> None:
    made = Generation("one", (1,), (1,), "tool_calls", tool_calls=(ToolCall("f", "{}"), ToolCall("g", "[]", "own")))

    class Both(scripted):  # type: ignore[misc]
        def stream(self, prompt: Any, sampling: Any) -> Any:
            yield Delta("one")
            yield Delta("", tool_calls=made.tool_calls[:1])
            yield Delta("", made)

    client = start({"m": Both(parameters=("tools",))}).client()
    ask = {"model": "m", "input": "x", "tools": [{"type": "function", "name": name} for name in "fg"]}
    whole = client.responses.create(**ask)
    assert [item.type for item in whole.output] == ["message", "function_call", "function_call"]
    with client.responses.stream(**ask) as stream:
        done = [event.item.type for event in stream if event.type == "response.output_item.done"]
        final = stream.get_final_response()
    assert done == [item.type for item in final.output] == [item.type for item in whole.output]
    assert [call.call_id for call in final.output[1:]][1] == "own"
    kept = client.responses.retrieve(final.id)
    assert [item.id for item in kept.output] == [item.id for item in final.output]
    assert [call.call_id for call in kept.output[1:]] == [call.call_id for call in final.output[1:]]


def test_log_probabilities(server: Any) -> None:
    client = server.client()
    ask = {"model": "fake", "input": "hello", "temperature": 0, "include": ["message.output_text.logprobs"]}
    (part,) = client.responses.create(**ask, top_logprobs=2).output[0].content
    assert "".join(token.token for token in part.logprobs) == part.text
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)
    for event in client.responses.create(**ask, stream=True):
        if event.type == "response.output_text.delta":
            assert "".join(token.token for token in event.logprobs) == event.delta


def test_a_conversation_goes_on(start: Any, scripted: Any) -> None:
    """Earlier turns come back, each response's instructions hold for it alone, and the session is inherited."""
    engine = scripted()
    server = start({"m": engine})
    client = server.client()
    first = client.responses.create(model="m", input="a", instructions="old", metadata={"session_id": "s"})
    second = client.responses.create(model="m", input="b", instructions="new", previous_response_id=first.id)
    third = client.responses.create(model="m", input="c", previous_response_id=second.id)
    answer = Message("assistant", "one two three")
    turns = [Message("user", "a"), answer, Message("user", "b"), answer, Message("user", "c")]
    assert engine.asked[1][0] == (Message("system", "new"), *turns[:3])
    assert engine.asked[2][0] == tuple(turns)
    httpx.get(f"{server.base_url}/traces/{third.id}").raise_for_status()
    assert find_trace(server.store, third.id).session == "s"


def test_a_stored_response_can_be_read(server: Any) -> None:
    client = server.client()
    ask = {"model": "fake", "input": "hello", "instructions": "be terse", "temperature": 0.5}
    made = client.responses.create(**ask, extra_body={"seed": 1, "metadata": {"a": "b"}})
    assert client.responses.retrieve(made.id).model_dump() == made.model_dump()


def test_what_is_not_stored_is_not_found(server: Any) -> None:
    client = server.client()
    unstored = client.responses.create(model="fake", input="hello", store=False)
    chat = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x"}])
    for name in (unstored.id, chat.id, "trace_none", "x" * 120):
        with pytest.raises(openai.NotFoundError) as refused:
            client.responses.create(model="fake", input="b", previous_response_id=name)
        assert refused.value.param == "previous_response_id"
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(name)


def test_another_tenant_s_response_is_not_found(server: Any) -> None:
    client = server.client()
    made = client.responses.create(model="fake", input="my secret is 1234")
    httpx.get(f"{server.base_url}/traces/{made.id}").raise_for_status()
    theirs = replace(find_trace(server.store, made.id), id="trace_theirs", tenant="someone else")
    record_trace(server.store, theirs)
    with pytest.raises(openai.NotFoundError) as refused:
        client.responses.create(model="fake", input="what is my secret?", previous_response_id="trace_theirs")
    with pytest.raises(openai.NotFoundError) as unread:
        client.responses.retrieve("trace_theirs")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.retrieve("trace_nobody")
    assert "1234" not in str(refused.value) + str(unread.value)
    assert str(unread.value).replace("theirs", "nobody") == str(unknown.value)


def test_nothing_goes_on_from_a_failure_or_an_image(start: Any, scripted: Any, make_fake: Any) -> None:
    def fail(number: int) -> None:
        raise EngineError("out of memory")

    server = start({"bad": scripted(before=fail), "m": make_fake("m")})
    client = server.client()
    with pytest.raises(openai.APIStatusError) as failed:
        client.responses.create(model="bad", input="x")
    with pytest.raises(openai.BadRequestError, match="failed"):
        client.responses.create(
            model="m", input="y", previous_response_id=failed.value.response.headers["x-luthier-trace-id"]
        )
    content = [{"type": "input_text", "text": "see"}, {"type": "input_image", "image_url": PNG, "detail": "auto"}]
    seen = client.responses.create(model="m", input=[{"role": "user", "content": content}])
    with pytest.raises(openai.BadRequestError, match="image"):
        client.responses.create(model="m", input="y", previous_response_id=seen.id)


def test_a_failure_in_the_middle_is_an_event(start: Any, scripted: Any) -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise EngineError("the remote hung up")

    events = list(start({"m": scripted(before=fail)}).client().responses.create(model="m", input="x", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.status == "failed"
    assert events[-1].response.error.message == "the remote hung up"


def test_what_an_engine_cannot_do_is_named(start: Any, scripted: Any) -> None:
    client = start({"m": scripted()}).client()
    content = [{"type": "input_image", "image_url": PNG, "detail": "auto"}]
    asked: list[tuple[dict[str, Any], str]] = [
        ({"tools": [WEATHER]}, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"input": [{"role": "user", "content": content}]}, "input"),
    ]
    for fields, param in asked:
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(**{"model": "m", "input": "x", **fields})
        assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"), ({"messages": []}, "messages"), ({"max_tokens": 5}, "max_tokens"), ({"n": 2}, "n"),
        ({"background": True}, "background"), ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"), ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"), ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"), ({"tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        ({"previous_response_id": "x" * 129}, "previous_response_id"), ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"conversation": "c"}, "conversation"), ({"top_logprobs": 21}, "top_logprobs"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as raised:
        read(json.dumps({"model": "m", "input": "x", **fields}).encode(), ResponseRequest)
    assert (raised.value.http_status, raised.value.param) == (400, param)
    assert param in raised.value.message
