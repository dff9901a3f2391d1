"""POST /v1/completions: raw text, continued without a chat template or a task's prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from luthier.core.engine import MOST_LOGPROBS, Generation, Sampling, TokenLogprob
from luthier.core.errors import LuthierError
from luthier.gateway.answer import Asked, Chunks, failed, head_of, usage_of
from luthier.gateway.api.asking import Completing
from luthier.gateway.api.logprobs import columns
from luthier.gateway.api.wire import TEXTS_SCHEMA, bad, text_list
from luthier.gateway.calls import Piece
from luthier.gateway.exchange import Exchange
from luthier.gateway.knowledge.citations import extension, is_from_documents

DEFAULT_TOKENS = 16
"""What the OpenAI specification gives ``max_tokens`` on this endpoint."""
MOST_PROMPTS = 64
MOST_ANSWERS = 256


def _prompts(value: Any) -> list[str]:
    texts = text_list(value)
    if not 1 <= len(texts) <= MOST_PROMPTS:
        raise bad(f"must hold 1 to {MOST_PROMPTS} texts; got {len(texts)}")
    return texts


class CompletionRequest(Completing):
    """Raw text to go on with."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"best_of": (1,), "suffix": ("",)}
    prompt: Annotated[list[str], PlainValidator(_prompts), WithJsonSchema(TEXTS_SCHEMA)]
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    echo: bool = False

    @model_validator(mode="after")
    def _go_together(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise bad("with logprobs is not supported: no engine here reports log-probabilities of the prompt", ".echo")
        if len(self.prompt) * self.n > MOST_ANSWERS:
            raise bad(f"times the number of prompts must be at most {MOST_ANSWERS}", ".n")
        return self

    def sampling(self, **more: Any) -> tuple[Sampling, frozenset[str]]:
        """What is asked, and which of its fields are left to the model."""
        return super().sampling(max_new_tokens=self.max_tokens or DEFAULT_TOKENS, logprobs=self.logprobs, **more)


class CompletionFormat:
    """Text completions; a chunk looks like a whole one. One for each request: it counts the characters that were sent."""

    def __init__(self, body: CompletionRequest) -> None:
        self._logprobs = body.logprobs
        self._echo = [text for text in body.prompt for _ in range(body.n)] if body.echo else []
        self._chunk = Chunks("text_completion", body.wants_usage)
        self._sent: dict[int, tuple[int, bytes]] = {}

    def whole(self, exchange: Exchange, choices: list[Generation]) -> dict[str, Any]:
        """A ``text_completion``."""
        made = [
            self._choice(index, self._before(index) + choice.text, choice.tokens, choice.finish_reason)
            for index, choice in enumerate(choices)
        ]
        for choice, answer in zip(made, choices, strict=True):
            if is_from_documents(answer):
                choice["luthier"] = extension(answer)
        if len(made) > 1:
            for index, choice in enumerate(made):
                choice["trace_id"] = exchange.trace_id(index)
        return {
            **head_of(exchange), "object": "text_completion", "choices": made, "usage": usage_of(exchange),
        }  # fmt: skip

    def opening(self, exchange: Exchange, index: int) -> list[bytes]:
        """The prompt, where it was asked for; else nothing comes before the text."""
        text = self._before(index)
        return [self._chunk(exchange, self._choice(index, text, (), None))] if text else []

    def piece(self, exchange: Exchange, piece: Piece) -> list[bytes]:
        """A piece of the text, and its end."""
        choices = []
        if piece.text or piece.tokens:
            choices.append(self._choice(piece.index, piece.text, piece.tokens, None))
        if piece.generation is not None:
            last = self._choice(piece.index, "", (), piece.generation.finish_reason)
            if is_from_documents(piece.generation):
                last["luthier"] = extension(piece.generation)
            choices.append(last)
        return [self._chunk(exchange, choice) for choice in choices]

    def ending(self, exchange: Exchange) -> list[bytes]:
        """The end of the stream."""
        return self._chunk.ending(exchange)

    def failure(self, exchange: Exchange, error: LuthierError) -> list[bytes]:
        """An answer that fails in the middle."""
        return failed(error)

    def _before(self, index: int) -> str:
        return self._echo[index] if self._echo else ""

    def _choice(
        self, index: int, text: str, tokens: Sequence[TokenLogprob], finish_reason: str | None
    ) -> dict[str, Any]:
        said = None
        if self._logprobs is not None and (tokens or finish_reason is None):
            said, self._sent[index] = columns(tokens, self._sent.get(index, (0, b"")))
            if self._logprobs == 0:
                said["top_logprobs"] = None
        return {"index": index, "text": text, "logprobs": said, "finish_reason": finish_reason}


def read_completion(body: CompletionRequest) -> Asked:
    """The request as the layers see it."""
    return Asked(
        operation="completion",
        body=body,
        prompts=tuple(body.prompt),
        messages=tuple(({"role": "user", "content": text},) for text in body.prompt),
        format=CompletionFormat(body),
    )
