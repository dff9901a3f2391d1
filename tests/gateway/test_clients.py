"""Clients as people write them: the openai package's helpers, and LangChain's classes, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import pydantic_function_tool
from pydantic import BaseModel, Field

from luthier.gateway.serve import running
from luthier.store.database import open_store

HELLO: list[Any] = [{"role": "user", "content": "where is my parcel?"}]
ASK_WEATHER: list[Any] = [{"role": "user", "content": "how is the weather?"}]


class Place(BaseModel):
    """Where a parcel is."""

    city: str
    street: str | None
    floors: list[int] = Field(min_length=1)


class Weather(BaseModel):
    """How the weather is in a city."""

    city: str


@tool
def weather(city: str) -> str:
    """How the weather is in a city."""
    return f"rain in {city}"


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose model calls the tool that it is offered when it is asked for the weather."""
    from luthier.engines._target import EngineTarget
    from luthier.engines.fake import Config
    from luthier.engines.fake import open as open_fake

    calls = {
        "weather": (
            {"name": "weather", "arguments": {"city": "Ulm"}},
            {"name": "Weather", "arguments": {"city": "Ulm"}},
        )
    }
    engine = open_fake(EngineTarget("m"), Config(tool_calls=calls))
    with running({"m": engine}, store=open_store(tmp_path_factory.mktemp("clients"))) as url:
        yield url


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="x", max_retries=0, timeout=30) as made:
        yield made


@pytest.fixture
def chat(base_url: str) -> ChatOpenAI:
    return ChatOpenAI(base_url=base_url, api_key="x", model="m", temperature=0, max_retries=0)  # type: ignore[arg-type]


# ---- openai


def test_parse_gives_the_model_s_class(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(model="m", messages=HELLO, response_format=Place)
    assert isinstance(parsed.choices[0].message.parsed, Place)
    assert parsed.choices[0].message.parsed.floors


def test_parse_gives_a_tool_s_arguments(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model="m", messages=ASK_WEATHER, tools=[pydantic_function_tool(Weather)], tool_choice="required"
    )
    (call,) = parsed.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == Weather(city="Ulm")


def test_the_stream_helper_collects_text_logprobs_and_usage(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="m", messages=HELLO, temperature=0, logprobs=True, top_logprobs=2, stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    choice = final.choices[0]
    assert {"content.delta", "content.done", "logprobs.content.delta", "logprobs.content.done"} <= set(kinds)
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert final.usage is not None and final.usage.completion_tokens > 0


def test_the_stream_helper_parses(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="m", messages=HELLO, response_format=Place) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Place)
    with client.chat.completions.stream(
        model="m", messages=ASK_WEATHER, tools=[pydantic_function_tool(Weather)]
    ) as stream:
        kinds = [event.type for event in stream]
        called = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    (call,) = called.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == Weather(city="Ulm")


def test_the_async_client_does_all_of_it(base_url: str) -> None:
    async def ask() -> tuple[Any, Any, Any, Any]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="x", max_retries=0) as client:
            parsed = client.chat.completions.parse(model="m", messages=HELLO, response_format=Place)
            response = client.responses.parse(model="m", input="where?", text_format=Place)
            vectors = client.embeddings.create(model="m", input=["a", "b"])
            models = client.models.list()
            return tuple(await asyncio.gather(parsed, response, vectors, models))  # type: ignore[return-value]

    parsed, response, vectors, models = asyncio.run(ask())
    assert isinstance(parsed.choices[0].message.parsed, Place)
    assert isinstance(response.output_parsed, Place)
    assert len(vectors.data) == 2
    assert {"logprobs", "tools", "json_schema"} <= set(models.data[0].parameters)


def test_a_request_id_is_the_trace(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=HELLO)
    assert answer._request_id == answer.id


# ---- LangChain


def test_langchain_invoke_and_batch(chat: ChatOpenAI) -> None:
    answer = chat.invoke([SystemMessage("be terse"), HumanMessage("where is my parcel?")])
    assert isinstance(answer.content, str) and answer.content
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["model_name"] == "m"
    assert answer.response_metadata["system_fingerprint"].startswith("fp_")
    assert len(chat.batch(["a", "b", "c"])) == 3


def test_langchain_streams(chat: ChatOpenAI) -> None:
    whole = chat.invoke("where is my parcel?")
    chunks = list(chat.stream("where is my parcel?"))
    assert "".join(str(chunk.content) for chunk in chunks) == whole.content
    assert len(chunks) > 2

    async def stream() -> str:
        return "".join([str(chunk.content) async for chunk in chat.astream("where is my parcel?")])

    assert asyncio.run(stream()) == whole.content


def test_langchain_tools(chat: ChatOpenAI) -> None:
    bound = chat.bind_tools([weather])
    asked = HumanMessage("how is the weather?")
    answer = bound.invoke([asked])
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Ulm"})
    said = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    after = bound.invoke([asked, answer, said])
    assert after.content and not after.tool_calls
    forced = chat.bind_tools([weather], tool_choice="weather").invoke("nothing of the kind")
    assert forced.tool_calls[0]["name"] == "weather"
    streamed: Any = None
    for chunk in bound.stream([asked]):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.tool_calls[0]["args"] == {"city": "Ulm"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_langchain_structured_output(chat: ChatOpenAI, method: Any) -> None:
    if method == "json_mode":  # any object: the schema is only in the prompt
        made = chat.with_structured_output(method="json_mode").invoke("where? in JSON")
        assert isinstance(made, dict)
        return
    made = chat.with_structured_output(Place, method=method).invoke("where?")
    assert isinstance(made, Place)


def test_langchain_logprobs_and_penalties(base_url: str) -> None:
    chat = ChatOpenAI(
        base_url=base_url, api_key="x", model="m", temperature=0, max_retries=0, logprobs=True, top_logprobs=2,  # type: ignore[arg-type]
        presence_penalty=0.5, frequency_penalty=0.5, seed=3, n=1, max_completion_tokens=7, stop_sequences=["zzz"],
        logit_bias={5: -100}, top_p=0.9, extra_body={"min_p": 0.01, "top_k": 10},
    )  # fmt: skip
    answer = chat.invoke("hello")
    assert answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]


def test_langchain_responses_api(base_url: str) -> None:
    chat = ChatOpenAI(base_url=base_url, api_key="x", model="m", temperature=0, max_retries=0, use_responses_api=True)  # type: ignore[arg-type]
    answer = chat.invoke("where is my parcel?")
    assert answer.text
    streamed: Any = None
    for chunk in chat.stream("where is my parcel?"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.text == answer.text
    called = chat.bind_tools([weather]).invoke("how is the weather?")
    assert isinstance(called, AIMessage)
    assert called.tool_calls[0]["args"] == {"city": "Ulm"}
    assert isinstance(chat.with_structured_output(Place).invoke("where?"), Place)


def test_langchain_embeddings(base_url: str) -> None:
    texts = ["where is my parcel", "pay me back"]
    vectors = OpenAIEmbeddings(
        base_url=base_url, api_key="x", model="m", check_embedding_ctx_length=False, max_retries=0
    )  # type: ignore[arg-type]
    found = np.array(vectors.embed_documents(texts))
    assert found.shape == (2, 64)
    np.testing.assert_allclose(found[0], vectors.embed_query(texts[0]), rtol=1e-6)


def test_token_ids_are_refused_with_what_to_set(client: openai.OpenAI) -> None:
    """What LangChain sends when it is not told otherwise: ids of another tokenizer."""
    for ids in ([[15339, 1917]], [15339, 1917]):
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            client.embeddings.create(model="m", input=ids)
