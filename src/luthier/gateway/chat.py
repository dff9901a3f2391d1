"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, model_validator

from luthier.core.engine import MOST_LOGPROBS, Constraint, Generation, Sampling, TokenLogprob
from luthier.core.message import ToolCall
from luthier.gateway.answer import Asked
from luthier.gateway.asking import Asking, Count, Tokens
from luthier.gateway.calls import Piece
from luthier.gateway.forms import ResponseFormat
from luthier.gateway.logprobs import listed
from luthier.gateway.messages import Messages, kept
from luthier.gateway.tools import Choice, Tools, check_choice
from luthier.gateway.wire import StreamOptions, bad


class ChatRequest(Asking):
    """A conversation to answer."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "functions": ([],), "function_call": ("none", "auto"), "store": (False,), "modalities": (["text"],), "audio": (),
        "prediction": (), "reasoning_effort": (), "service_tier": ("auto", "default"), "web_search_options": (),
        "verbosity": (), "prompt_cache_key": (), "prompt_cache_options": (), "prompt_cache_retention": (),
        "safety_identifier": (), "moderation": (),
    }  # fmt: skip
    messages: Messages
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    n: Count = 1
    stream_options: StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MOST_LOGPROBS)
    response_format: ResponseFormat = None
    tools: Tools = ()
    tool_choice: Choice | None = None
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _go_together(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise bad("and max_completion_tokens say different things; send one of them", ".max_tokens")
        if self.stream_options is not None and not self.stream:
            raise bad("is allowed only with stream: true", ".stream_options")
        if self.top_logprobs and not self.logprobs:
            raise bad("needs logprobs: true", ".top_logprobs")
        check_choice(self.tool_choice, self.tools)
        return self

    def forms(self) -> dict[str, Constraint]:
        """The constraints that are asked for, by the field that does."""
        own = {"response_format": self.response_format} if self.response_format is not None else {}
        return own | super().forms()

    def sampling(self, **more: Any) -> tuple[Sampling, frozenset[str]]:
        """What is asked, and which of its fields are left to the model."""
        return super().sampling(
            max_new_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=self.top_logprobs if self.logprobs else None,
            tools=self.tools,
            tool_choice=self.tool_choice or "auto",
            parallel_tool_calls=self.parallel_tool_calls,
            **more,
        )


class ChatFormat:
    """Chat completions and their chunks. One for each request: it counts the calls that were sent."""

    chunk = "chat.completion.chunk"

    def __init__(self, *, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._called: dict[int, int] = {}

    def whole(self, head: Mapping[str, Any], choices: list[Generation], usage: dict[str, Any]) -> dict[str, Any]:
        """A ``chat.completion``."""
        return {
            **head,
            "object": "chat.completion",
            "choices": [self._choice(head, index, choice) for index, choice in enumerate(choices)],
            "usage": usage,
        }

    def _choice(self, head: Mapping[str, Any], index: int, choice: Generation) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.tool_calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [
                {"id": call_id(call, head, index, number), "type": "function", "function": _function(call)}
                for number, call in enumerate(choice.tool_calls)
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": self._said(choice.tokens),
            "finish_reason": choice.finish_reason,
        }

    def opening(self, head: Mapping[str, Any], index: int) -> list[dict[str, Any]]:
        """The chunk that says who speaks."""
        return [self._chunk(head, index, {"role": "assistant", "content": ""})]

    def piece(self, head: Mapping[str, Any], piece: Piece) -> list[dict[str, Any]]:
        """A piece of the answer, and its end."""
        chunks, index = [], piece.index
        if piece.text or piece.tokens:
            chunks.append(self._chunk(head, index, {"content": piece.text}, piece.tokens))
        sent = self._called.get(index, 0)
        calls = piece.tool_calls
        if piece.generation is not None:  # what an engine says only at the end
            calls = (*calls, *piece.generation.tool_calls[sent + len(calls) :])
        if calls:
            self._called[index] = sent + len(calls)
            chunks += [self._chunk(head, index, _call(head, index, sent + n, call)) for n, call in enumerate(calls)]
        if piece.generation is not None:
            chunks.append(self._chunk(head, index, {}, finish_reason=piece.generation.finish_reason))
        return chunks

    def _chunk(
        self,
        head: Mapping[str, Any],
        index: int,
        delta: dict[str, Any],
        tokens: Sequence[TokenLogprob] = (),
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        said = self._said(tokens) if tokens else None
        choice = {"index": index, "delta": delta, "logprobs": said, "finish_reason": finish_reason}
        return {**head, "object": self.chunk, "choices": [choice]}

    def _said(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return {"content": listed(tokens), "refusal": None} if self._logprobs else None


def _call(head: Mapping[str, Any], index: int, number: int, call: ToolCall) -> dict[str, Any]:
    said = {"index": number, "id": call_id(call, head, index, number), "type": "function", "function": _function(call)}
    return {"tool_calls": [said]}


def _function(call: ToolCall) -> dict[str, str]:
    return {"name": call.name, "arguments": call.arguments}


def call_id(call: ToolCall, head: Mapping[str, Any], index: int, number: int) -> str:
    """The engine's id of a call, or one that follows from the answer's id."""
    return call.id or f"call_{str(head['id']).rpartition('_')[2]}{index:02x}{number:02x}"


def read_chat(body: ChatRequest) -> Asked:
    """The request as the layers see it."""
    return Asked(
        operation="chat",
        body=body,
        prompts=(body.messages,),
        messages=(kept(body.messages),),
        format=ChatFormat(logprobs=body.logprobs),
    )
