"""Clients that people have, against a running gateway: which of them work unchanged.

    luthier serve fake --port 8000 &                                   # or any model
    python benchmarks/clients.py --base-url http://127.0.0.1:8000/v1 --model fake

Without ``--base-url`` it serves the fake engine itself. A client that is not installed is left out and named: LlamaIndex asks for an older
openai package than Luthier, so it is run from an environment of its own (``pip install llama-index-llms-openai-like
llama-index-embeddings-openai-like``; this file needs nothing of Luthier when ``--base-url`` is given). Prints one line a check and ends
with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel


class Place(BaseModel):
    """Where something is."""

    city: str
    floor: int


@dataclass(frozen=True)
class Target:
    """What is asked; ``tools`` and ``forms``: whether its engine calls tools and keeps to forms."""

    base_url: str
    model: str
    key: str
    tools: bool
    forms: bool
    embeds: bool


CHECKS: dict[str, tuple[str, Callable[[Target], Any], str]] = {}


def check(package: str, needs: str = "") -> Callable[[Callable[[Target], Any]], Callable[[Target], Any]]:
    """A check of ``package``: returns something that is true. ``needs``: what the target's engine must be able to do."""

    def add(function: Callable[[Target], Any]) -> Callable[[Target], Any]:
        CHECKS[function.__name__] = (package, function, needs)
        return function

    return add


def _openai(target: Target) -> Any:
    import openai

    return openai.OpenAI(base_url=target.base_url, api_key=target.key, max_retries=0)


def _messages(text: str = "Where is my parcel?") -> list[Any]:
    return [{"role": "user", "content": text}]


# ---- openai


@check("openai")
def openai_chat(target: Target) -> Any:
    return _openai(target).chat.completions.create(model=target.model, messages=_messages()).choices[0].message.content


@check("openai")
def openai_stream(target: Target) -> Any:
    options = {"include_usage": True}
    stream = _openai(target).chat.completions.create(
        model=target.model, messages=_messages(), stream=True, stream_options=options
    )
    chunks = list(stream)
    return chunks[-1].usage.total_tokens and "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


@check("openai")
def openai_async(target: Target) -> Any:
    import openai

    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=target.base_url, api_key=target.key, max_retries=0) as client:
            answers = [client.chat.completions.create(model=target.model, messages=_messages(str(n))) for n in range(4)]
            return all(each.choices[0].message.content for each in await asyncio.gather(*answers))

    return asyncio.run(ask())


@check("openai", "forms")
def openai_parse(target: Target) -> Any:
    client = _openai(target)
    parsed = client.chat.completions.parse(model=target.model, messages=_messages(), response_format=Place)
    return isinstance(parsed.choices[0].message.parsed, Place)


@check("openai")
def openai_responses(target: Target) -> Any:
    client = _openai(target)
    first = client.responses.create(model=target.model, input="Where is my parcel?")
    second = client.responses.create(model=target.model, input="And now?", previous_response_id=first.id)
    with client.responses.stream(model=target.model, input="Hello") as stream:
        final = stream.get_final_response()
    return first.output_text and second.output_text and final.output_text


@check("openai", "embeds")
def openai_embeddings(target: Target) -> Any:
    return len(_openai(target).embeddings.create(model=target.model, input=["a", "b"]).data) == 2


# ---- LangChain


def _langchain(target: Target, **more: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=target.base_url, api_key=target.key, model=target.model, max_retries=0, **more)


@check("langchain-openai")
def langchain_invoke(target: Target) -> Any:
    return _langchain(target).invoke("Where is my parcel?").content


@check("langchain-openai")
def langchain_stream(target: Target) -> Any:
    return "".join(chunk.text for chunk in _langchain(target).stream("Where is my parcel?"))


@check("langchain-openai")
def langchain_responses(target: Target) -> Any:
    return _langchain(target, use_responses_api=True).invoke("Where is my parcel?").text


@check("langchain-openai", "tools")
def langchain_tools(target: Target) -> Any:
    bound = _langchain(target).bind_tools([Place], tool_choice="Place")
    return bound.invoke("Where is my parcel?").tool_calls[0]["name"] == "Place"


@check("langchain-openai", "forms")
def langchain_structured(target: Target) -> Any:
    return isinstance(_langchain(target).with_structured_output(Place).invoke("Where?"), Place)


@check("langchain-openai", "embeds")
def langchain_embeddings(target: Target) -> Any:
    from langchain_openai import OpenAIEmbeddings

    found = OpenAIEmbeddings(
        base_url=target.base_url, api_key=target.key, model=target.model, check_embedding_ctx_length=False
    )
    return len(found.embed_documents(["a", "b"])) == 2


# ---- LlamaIndex


def _llama(target: Target) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(
        model=target.model, api_base=target.base_url, api_key=target.key, is_chat_model=True,
        is_function_calling_model=True, should_use_structured_outputs=True, context_window=4096, max_retries=0,
    )  # fmt: skip


def _turn(text: str = "Where is my parcel?") -> list[Any]:
    from llama_index.core.llms import ChatMessage

    return [ChatMessage(role="system", content="Be terse."), ChatMessage(role="user", content=text)]


@check("llama-index-llms-openai-like")
def llamaindex_chat(target: Target) -> Any:
    return _llama(target).chat(_turn()).message.content


@check("llama-index-llms-openai-like")
def llamaindex_stream(target: Target) -> Any:
    return "".join(str(chunk.delta) for chunk in _llama(target).stream_chat(_turn()))


@check("llama-index-llms-openai-like")
def llamaindex_async(target: Target) -> Any:
    async def ask() -> Any:
        return (await _llama(target).achat(_turn())).message.content

    return asyncio.run(ask())


@check("llama-index-llms-openai-like")
def llamaindex_complete(target: Target) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(
        model=target.model, api_base=target.base_url, api_key=target.key, is_chat_model=False, max_retries=0
    )
    return llm.complete("Once upon a").text


@check("llama-index-llms-openai-like", "tools")
def llamaindex_tools(target: Target) -> Any:
    from llama_index.core.tools import FunctionTool

    def weather(city: str) -> str:
        """How the weather is in a city."""
        return f"rain in {city}"

    llm, tool = _llama(target), FunctionTool.from_defaults(fn=weather)
    response = llm.chat_with_tools([tool], user_msg="The weather in Ulm?", tool_required=True)
    return llm.get_tool_calls_from_response(response)[0].tool_name == "weather"


@check("llama-index-llms-openai-like", "forms")
def llamaindex_structured(target: Target) -> Any:
    from llama_index.core.prompts import PromptTemplate

    return isinstance(_llama(target).structured_predict(Place, PromptTemplate("Where is it?")), Place)


@check("llama-index-embeddings-openai-like", "embeds")
def llamaindex_embeddings(target: Target) -> Any:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    model = OpenAILikeEmbedding(model_name=target.model, api_base=target.base_url, api_key=target.key)
    return len(model.get_text_embedding_batch(["a", "b"])) == 2


# ---- others


@check("cohere", "embeds")
def cohere_rerank(target: Target) -> Any:
    import cohere

    client = cohere.ClientV2(target.key, base_url=target.base_url.removesuffix("/v1"))
    results = client.rerank(model=target.model, query="parcel", documents=["a violin", "the parcel"]).results
    return results[0].index == 1


@check("instructor", "tools")
def instructor_create(target: Target) -> Any:
    import instructor

    client = instructor.from_openai(_openai(target))
    return isinstance(client.create(model=target.model, messages=_messages(), response_model=Place), Place)


@check("openai-agents")
def agents_run(target: Target) -> Any:
    import agents
    import openai

    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=target.base_url, api_key=target.key, max_retries=0)
    model = agents.OpenAIResponsesModel(model=target.model, openai_client=client)
    agent = agents.Agent(name="desk", instructions="Be terse.", model=model)
    return agents.Runner.run_sync(agent, "Where is my parcel?").final_output


@check("pydantic-ai-slim", "tools")
def pydantic_ai_run(target: Target) -> Any:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=target.base_url, api_key=target.key)
    agent = Agent(OpenAIChatModel(target.model, provider=provider), output_type=Place)
    return isinstance(agent.run_sync("Where is my parcel?").output, Place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="of a running gateway; without it the fake engine is served")
    parser.add_argument("--model", default="fake")
    parser.add_argument(
        "--api-key-env", default="LUTHIER_API_KEY", help="environment variable with the key, if one is needed"
    )
    parser.add_argument("--only", default="", help="checks whose name holds this")
    parser.add_argument(
        "--quick", action="store_true", help="accepted as by the other benchmarks; this one is always quick"
    )
    asked = parser.parse_args()
    with _served(asked.base_url) as base_url:
        key = os.environ.get(asked.api_key_env, "not-needed")
        target = _target(base_url, asked.model, key)
        results = {name: _run(name, target) for name in CHECKS if asked.only in name}
    figures = {name: said for name, said in results.items() if not said.startswith("not installed")}
    quality = {"worked": sum(said == "works" for said in figures.values()), "of": len(figures)}
    print(json.dumps({"benchmark": "clients", "ratios": {}, "figures": figures, "quality": quality}))
    sys.exit(any(said.startswith("failed") for said in figures.values()))


@contextmanager
def _served(base_url: str | None) -> Iterator[str]:
    if base_url is not None:
        yield base_url.rstrip("/")
        return
    from luthier.gateway.serve import running
    from luthier.store.database import open_store

    with tempfile.TemporaryDirectory() as folder, running("fake", store=open_store(folder)) as url:
        yield url


def _target(base_url: str, model: str, key: str) -> Target:
    import httpx

    answer = httpx.get(f"{base_url}/models/{model}", headers={"authorization": f"Bearer {key}"})
    answer.raise_for_status()
    about = answer.json()
    can = set(about["parameters"])
    return Target(base_url, model, key, "tools" in can, "json_schema" in can, "embed" in about["capabilities"])


def _run(name: str, target: Target) -> str:
    package, function, needs = CHECKS[name]
    try:
        installed = version(package)
    except PackageNotFoundError:
        said = f"not installed: {package}"
    else:
        if needs and not getattr(target, needs):
            said = f"left out: {target.model} has no {needs}"
        else:
            try:
                said = "works" if function(target) else "failed: nothing came back"
            except Exception as error:  # noqa: BLE001 - a client may fail with anything; the others are to be tried
                traceback.print_exc()
                said = f"failed: {type(error).__name__}: {str(error)[:300]}"
        package = f"{package} {installed}"
    print(f"{name:<24} {package:<44} {said}", flush=True)
    return said


if __name__ == "__main__":
    main()
