"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.engine import Generation
from luthier.gateway.answer import Asked
from luthier.gateway.service import Service
from luthier.gateway.wire import ChatRequest, RequestError


class ChatFormat:
    """Chat completions and their chunks."""

    def whole(self, head: Mapping[str, Any], choices: list[Generation], usage: dict[str, int]) -> dict[str, Any]:
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

    def piece(self, head: Mapping[str, Any], index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        """A piece of the answer, or its end."""
        return _chunk(head, index, {"content": text} if text else {}, finish_reason)


def read_chat(service: Service, body: ChatRequest) -> Asked:
    """The request as the engine sees it. Raises RequestError for an unknown model, or messages that ask nothing."""
    served = service.model(body.model)
    conversation = tuple(message.message() for message in body.messages)
    if not any(message.role == "user" for message in conversation):
        raise RequestError("messages need at least one user turn; got none", param="messages", code="invalid_value")
    return Asked(
        operation="chat",
        body=body,
        served=served,
        prompts=(conversation,),
        messages=(tuple(message.as_dict() for message in conversation),),
        default_tokens=served.max_new_tokens,
        format=ChatFormat(),
    )


def _chunk(head: Mapping[str, Any], index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}
