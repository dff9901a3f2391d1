"""POST /v1/responses: the Responses API. Each answer's trace is the stored response that a later request may go on from."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

from fastapi import FastAPI
from pydantic import Field, PlainValidator, WithJsonSchema, model_validator
from starlette.requests import Request
from starlette.responses import Response

from luthier.core.engine import MOST_LOGPROBS, Constraint, Sampling
from luthier.core.errors import NotFoundError
from luthier.core.message import Message, ToolCall
from luthier.core.trace import Trace
from luthier.gateway.access.caller import Caller
from luthier.gateway.answer import Asked, answer, json_response
from luthier.gateway.api import openapi
from luthier.gateway.api.asking import Asking, Tokens
from luthier.gateway.api.chat import call_id
from luthier.gateway.api.forms import PLAIN_TEXT, TextFormat
from luthier.gateway.api.items import Input, check_turns
from luthier.gateway.api.messages import kept, read_content
from luthier.gateway.api.response_events import ResponseFormat, retrieved
from luthier.gateway.api.tools import CHOICES, FlatChoice, FlatTools, check_choice
from luthier.gateway.api.wire import Body, RequestError, expect, read, refuse_type
from luthier.gateway.service import Service
from luthier.gateway.watch.lookup import after_flush
from luthier.store.traces import find_trace

LOGPROBS = "message.output_text.logprobs"


def _include(value: Any) -> tuple[str, ...]:
    for number, each in enumerate(expect(value, list, "a list", "")):
        if each != LOGPROBS:
            refuse_type(each, f"{LOGPROBS}, the only thing that can be included", f"[{number}]")
    return tuple(value)


class Text(Body):
    """What form the text is to have."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}
    format: TextFormat = PLAIN_TEXT


class ResponseStreamOptions(Body):
    """Nothing of it is needed here."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}


class ResponseRequest(Asking):
    """Something to respond to. ``previous_response_id``: go on from an earlier response, whose turns need not be sent again."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "background": (False,), "conversation": (), "context_management": ([],), "image": (), "max_tool_calls": (),
        "moderation": (), "prompt": (), "prompt_cache_key": (), "prompt_cache_options": (), "prompt_cache_retention": (),
        "reasoning": ({},), "safety_identifier": (), "service_tier": ("auto", "default"), "truncation": ("disabled",),
        "access_programs": (),
    }  # fmt: skip
    input: Input
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    text: Text = Field(default_factory=Text)
    tools: FlatTools = ()
    tool_choice: FlatChoice | None = None
    parallel_tool_calls: bool = True
    include: Annotated[
        tuple[str, ...], PlainValidator(_include), WithJsonSchema({"type": "array", "items": {"const": LOGPROBS}})
    ] = ()
    top_logprobs: int = Field(default=0, ge=0, le=MOST_LOGPROBS)
    store: bool = True
    previous_response_id: str | None = Field(default=None, max_length=128)
    stream_options: ResponseStreamOptions | None = None

    @model_validator(mode="after")
    def _go_together(self) -> ResponseRequest:
        check_choice(self.tool_choice, self.tools)
        return self

    def forms(self) -> dict[str, Constraint]:
        """The constraints that are asked for, by the field that does."""
        form = self.text.format.constraint
        return ({"text.format": form} if form is not None else {}) | super().forms()

    @property
    def wants_logprobs(self) -> bool:
        """Whether the tokens' log-probabilities are asked for."""
        return bool(self.include or self.top_logprobs)

    def sampling(self, **more: Any) -> tuple[Sampling, frozenset[str]]:
        """What is asked, and which of its fields are left to the model."""
        return super().sampling(
            max_new_tokens=self.max_output_tokens,
            logprobs=self.top_logprobs if self.wants_logprobs else None,
            tools=self.tools,
            tool_choice=self.tool_choice or "auto",
            parallel_tool_calls=self.parallel_tool_calls,
            **more,
        )

    def field_of(self, parameter: str) -> str:
        """The field of this body that asks for one of ``core.engine.PARAMETERS``."""
        own = {"images": "input", "logprobs": "top_logprobs" if self.top_logprobs else "include"}
        return own.get(parameter) or super().field_of(parameter)


def register(app: FastAPI, service: Service) -> None:
    """The routes of this API."""

    @app.post(
        "/v1/responses",
        openapi_extra=openapi.takes(ResponseRequest),
        responses=openapi.gives(openapi.RESPONSE, streams=True),
    )
    async def create(request: Request) -> Response:
        """Respond to text or to a list of items."""
        body = read(await request.body(), ResponseRequest)
        asked = await read_response(service, request.scope["luthier.caller"], body)
        return await answer(service, request, asked)

    @app.get("/v1/responses/{response_id}", responses=openapi.gives(openapi.RESPONSE))
    async def retrieve(request: Request, response_id: str) -> Response:
        """A response that was stored."""
        trace = await stored(service, request.scope["luthier.caller"], response_id, "response_id")
        return json_response(retrieved(trace))


async def read_response(service: Service, caller: Caller, body: ResponseRequest) -> Asked:
    """The request as the layers see it, after the turns that it goes on from."""
    before: tuple[Message, ...] = ()
    session = ""
    if body.previous_response_id is not None:
        trace = await stored(service, caller, body.previous_response_id, "previous_response_id")
        before, session = history(trace), trace.session
    instructions = (Message("system", body.instructions),) if body.instructions else ()
    messages = (*instructions, *before, *body.input)
    check_turns(messages)
    said = about(body)
    return Asked(
        operation="chat",
        body=body,
        prompts=(messages,),
        messages=(kept(messages),),
        format=ResponseFormat(said, body.instructions or None, logprobs=body.wants_logprobs),
        session=session,
        details={"response": [said]},
    )


def about(body: ResponseRequest) -> dict[str, Any]:
    """What a response repeats of its request and the trace does not say elsewhere. The instructions are the trace's first message."""
    choice = body.tool_choice or "auto"
    return {
        "model": body.model,
        "instructions": bool(body.instructions),
        "max_output_tokens": body.max_output_tokens,
        "previous_response_id": body.previous_response_id,
        "store": body.store,
        "text": {"format": body.text.format.said},
        "tool_choice": choice if choice in CHOICES else {"type": "function", "name": choice},
        "top_logprobs": body.top_logprobs,
    }


async def stored(service: Service, caller: Caller, response_id: str, param: str) -> Trace:
    """The trace of a stored response of the caller's tenant. Raises RequestError 404: others' responses are not there."""
    unknown = RequestError(
        f"{param} {response_id[:128]!r} is not a stored response", status=404, param=param, code="response_not_found"
    )
    try:
        trace = await asyncio.to_thread(
            after_flush, service, response_id, partial(find_trace, service.store, response_id, tenant=caller.tenant)
        )
    except NotFoundError as error:
        raise unknown from error
    said = trace.details.get("response")
    if not said or not said[0].get("store"):
        raise unknown
    return trace


def history(trace: Trace) -> tuple[Message, ...]:
    """The turns of a stored response, its answer last; its instructions were for that response only.

    Raises RequestError for one that failed, and for one that held an image, of which only the digest is kept.
    """
    if trace.error:
        raise RequestError(
            f"response {trace.id!r} failed, so nothing can go on from it: {trace.error}",
            param="previous_response_id",
            code="invalid_value",
        )
    said = trace.messages[1:] if trace.details["response"][0].get("instructions") else trace.messages
    messages = [_kept_message(trace, each) for each in said]
    calls = trace.details.get("tool_calls", ())
    messages.append(
        Message(
            "assistant",
            trace.answer,
            tuple(
                ToolCall(call["name"], call["arguments"], call_id(call["id"], trace.id, 0, number))
                for number, call in enumerate(calls)
            ),
        )
    )
    return tuple(messages)


def _kept_message(trace: Trace, said: Mapping[str, Any]) -> Message:
    content = said.get("content")
    if isinstance(content, str) or content is None:
        return Message.from_dict(said)
    held = [part["image_url"]["url"] for part in content if part.get("type") == "image_url"]
    if any(";sha256=" in url[:80] for url in held):
        raise RequestError(
            f"response {trace.id!r} was asked with an image, which is not kept; send the turns again",
            param="previous_response_id",
            code="unsupported_value",
        )
    text, images = read_content(content, "", images=True)
    return Message(str(said["role"]), text, images=images)
