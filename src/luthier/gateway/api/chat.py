"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, model_validator

from luthier.core.engine import MOST_LOGPROBS, Generation, Sampling, TokenLogprob
from luthier.core.errors import LuthierError
from luthier.core.message import ToolCall
from luthier.gateway.answer import Asked, Chunks, failed, head_of, usage_of
from luthier.gateway.api.asking import Completing, Tokens
from luthier.gateway.api.logprobs import listed
from luthier.gateway.api.messages import Messages, kept
from luthier.gateway.api.tools import Choice, Tools, check_choice
from luthier.gateway.api.wire import bad
from luthier.gateway.calls import Piece
from luthier.gateway.exchange import Exchange
from luthier.gateway.knowledge.citations import chat_annotations, extension, is_from_documents


class ChatRequest(Completing):
    """A conversation to answer."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "functions": ([],), "function_call": ("none", "auto"), "store": (False,), "modalities": (["text"],), "audio": (),
        "prediction": (), "reasoning_effort": (), "service_tier": ("auto", "default"), "web_search_options": (),
        "verbosity": (), "prompt_cache_key": (), "prompt_cache_options": (), "prompt_cache_retention": (),
        "safety_identifier": (), "moderation": (),
    }  # fmt: skip
    messages: Messages
    max_completion_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MOST_LOGPROBS)
    tools: Tools = ()
    tool_choice: Choice | None = None
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _go_together(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise bad("and max_completion_tokens say different things; send one of them", ".max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise bad("needs logprobs: true", ".top_logprobs")
        check_choice(self.tool_choice, self.tools)
        return self

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

    def __init__(self, body: ChatRequest) -> None:
        self._logprobs = body.logprobs
        self._chunk = Chunks("chat.completion.chunk", body.wants_usage)
        self._called: dict[int, int] = {}

    def whole(self, exchange: Exchange, choices: list[Generation]) -> dict[str, Any]:
        """A ``chat.completion``."""
        made = [self._choice(exchange, index, choice) for index, choice in enumerate(choices)]
        if len(made) > 1:
            for index, choice in enumerate(made):
                choice["trace_id"] = exchange.trace_id(index)
        return {
            **head_of(exchange), "object": "chat.completion", "choices": made, "usage": usage_of(exchange),
        }  # fmt: skip

    def _choice(self, exchange: Exchange, index: int, choice: Generation) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if is_from_documents(choice):
            message |= {"annotations": chat_annotations(choice), "luthier": extension(choice)}
        if choice.tool_calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [
                {"id": call_id(call.id, exchange.id, index, number), "type": "function", "function": _function(call)}
                for number, call in enumerate(choice.tool_calls)
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": self._said(choice.tokens),
            "finish_reason": choice.finish_reason,
        }

    def opening(self, exchange: Exchange, index: int) -> list[bytes]:
        """The chunk that says who speaks."""
        return [self._chunk(exchange, self._delta(index, {"role": "assistant", "content": ""}))]

    def piece(self, exchange: Exchange, piece: Piece) -> list[bytes]:
        """A piece of the answer, and its end."""
        deltas, index = [], piece.index
        if piece.text or piece.tokens:
            deltas.append(self._delta(index, {"content": piece.text}, piece.tokens))
        sent = self._called.get(index, 0)
        calls = piece.tool_calls
        if piece.generation is not None:  # what an engine says only at the end
            calls = (*calls, *piece.generation.tool_calls[sent + len(calls) :])
        if calls:
            self._called[index] = sent + len(calls)
            deltas += [self._delta(index, _call(exchange, index, sent + n, call)) for n, call in enumerate(calls)]
        if piece.generation is not None:
            if is_from_documents(piece.generation):
                said = {"annotations": chat_annotations(piece.generation), "luthier": extension(piece.generation)}
                deltas.append(self._delta(index, said))
            deltas.append(self._delta(index, {}, finish_reason=piece.generation.finish_reason))
        return [self._chunk(exchange, delta) for delta in deltas]

    def ending(self, exchange: Exchange) -> list[bytes]:
        """The end of the stream."""
        return self._chunk.ending(exchange)

    def failure(self, exchange: Exchange, error: LuthierError) -> list[bytes]:
        """An answer that fails in the middle."""
        return failed(error)

    def _delta(
        self,
        index: int,
        delta: dict[str, Any],
        tokens: Sequence[TokenLogprob] = (),
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        said = self._said(tokens) if tokens else None
        return {"index": index, "delta": delta, "logprobs": said, "finish_reason": finish_reason}

    def _said(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return {"content": listed(tokens), "refusal": None} if self._logprobs else None


def _call(exchange: Exchange, index: int, number: int, call: ToolCall) -> dict[str, Any]:
    said = {"index": number, "id": call_id(call.id, exchange.id, index, number), "type": "function"}
    return {"tool_calls": [said | {"function": _function(call)}]}


def _function(call: ToolCall) -> dict[str, str]:
    return {"name": call.name, "arguments": call.arguments}


def call_id(given: str, answer_id: str, index: int, number: int) -> str:
    """The engine's id of a call, or where it gave none, one that follows from the answer's id."""
    return given or f"call_{answer_id.rpartition('_')[2]}{index:02x}{number:02x}"


def read_chat(body: ChatRequest) -> Asked:
    """The request as the layers see it."""
    return Asked(
        operation="chat",
        body=body,
        prompts=(body.messages,),
        messages=(kept(body.messages),),
        format=ChatFormat(body),
    )
