"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.engine import Generation
from luthier.gateway.answer import Asked
from luthier.gateway.calls import Piece
from luthier.gateway.wire import ChatRequest, RequestError


class ChatFormat:
    """Chat completions and their chunks."""

    def whole(self, head: Mapping[str, Any], choices: list[Generation], usage: dict[str, Any]) -> dict[str, Any]:
        """A ``chat.completion``."""
        return {
            **head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": None,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(choices)
            ],
            "usage": usage,
        }

    def opening(self, head: Mapping[str, Any], index: int) -> list[dict[str, Any]]:
        """The chunk that says who speaks."""
        return [_chunk(head, index, {"role": "assistant", "content": ""}, None)]

    def piece(self, head: Mapping[str, Any], piece: Piece) -> list[dict[str, Any]]:
        """A piece of the answer, and its end."""
        chunks = [_chunk(head, piece.index, {"content": piece.text}, None)] if piece.text else []
        if piece.generation is not None:
            chunks.append(_chunk(head, piece.index, {}, piece.generation.finish_reason))
        return chunks


def read_chat(body: ChatRequest) -> Asked:
    """The request as the layers see it. Raises RequestError for messages that ask nothing."""
    conversation = tuple(message.message() for message in body.messages)
    if not any(message.role == "user" for message in conversation):
        raise RequestError("messages need at least one user turn; got none", param="messages", code="invalid_value")
    return Asked(
        operation="chat",
        body=body,
        prompts=(conversation,),
        messages=(tuple(message.as_dict() for message in conversation),),
        format=ChatFormat(),
    )


def _chunk(head: Mapping[str, Any], index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}
