"""POST /v1/completions: raw text, continued without a chat template or a task's prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.engine import Generation
from luthier.gateway.answer import Asked
from luthier.gateway.calls import Piece
from luthier.gateway.wire import CompletionRequest

DEFAULT_TOKENS = 16
"""What the OpenAI specification gives ``max_tokens`` on this endpoint."""


class CompletionFormat:
    """Text completions; a chunk looks like a whole one."""

    def whole(self, head: Mapping[str, Any], choices: list[Generation], usage: dict[str, Any]) -> dict[str, Any]:
        """A ``text_completion``."""
        listed = [_choice(index, choice.text, choice.finish_reason) for index, choice in enumerate(choices)]
        return {**head, "object": "text_completion", "choices": listed, "usage": usage}

    def opening(self, head: Mapping[str, Any], index: int) -> list[dict[str, Any]]:
        """Nothing comes before the text."""
        return []

    def piece(self, head: Mapping[str, Any], piece: Piece) -> list[dict[str, Any]]:
        """A piece of the text, and its end."""
        ends: list[str | None] = [None] if piece.text else []
        ends += [piece.generation.finish_reason] if piece.generation is not None else []
        texts = [piece.text, ""] if piece.text else [""]
        choices = [_choice(piece.index, text, end) for text, end in zip(texts, ends, strict=False)]
        return [{**head, "object": "text_completion", "choices": [choice]} for choice in choices]


def read_completion(body: CompletionRequest) -> Asked:
    """The request as the layers see it."""
    return Asked(
        operation="completion",
        body=body,
        prompts=tuple(body.prompt),
        messages=tuple(({"role": "user", "content": text},) for text in body.prompt),
        default_tokens=DEFAULT_TOKENS,
        format=CompletionFormat(),
    )


def _choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
