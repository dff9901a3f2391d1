"""The request bodies of the OpenAI wire format, and the error body.

A field that this server cannot honour is refused by name, never ignored; the value that a field has when it does nothing
(``presence_penalty: 0``, ``tools: []``, null) is let through. Unknown fields are refused with the near names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from luthier.core.errors import LuthierError, did_you_mean
from luthier.core.message import Message

MOST_CHOICES = 8
MOST_PROMPTS = 64
MOST_TEXTS = 2048
MOST_STOPS = 16
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Body(BaseModel):
    """A request body. ``neutral`` lists the fields of the format that are not supported, with the values that do nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        return _without_neutral(data, cls.neutral) if isinstance(data, dict) else data


class WireMessage(Body):
    """One message. ``content`` is text, or a list of text parts, which are joined with line breaks."""

    neutral = {
        "refusal": (), "audio": (), "function_call": (), "tool_calls": ([],), "annotations": ([],), "name": (),
    }  # fmt: skip
    role: str
    content: str

    @field_validator("role")
    @classmethod
    def _known_role(cls, role: str) -> str:
        if role not in ROLES:
            raise PydanticCustomError(
                "role", "must be one of {roles}; got '{role}'", {"roles": ", ".join(ROLES), "role": role}
            )
        return ROLES[role]

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        if content is None:
            raise PydanticCustomError("content", "must be text or a list of text parts; got null")
        if not isinstance(content, list):
            return content
        texts = []
        for index, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            text = part.get("text") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(text, str):
                raise PydanticCustomError(
                    "part",
                    "part {index} must be {form}; got type {kind}",
                    {"index": index, "form": '{"type": "text", "text": "..."}', "kind": repr(kind)},
                )
            texts.append(text)
        return "\n".join(texts)

    def message(self) -> Message:
        """The message as engines read it."""
        return Message(self.role, self.content)


class StreamOptions(BaseModel):
    """``include_usage`` asks for one more chunk with the token counts."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    include_usage: bool = False


class Asking(Body):
    """What chat and completion requests share. ``top_k`` and ``repetition_penalty`` are not OpenAI's (``extra_body``)."""

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, gt=0.0)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: list[str] = Field(default_factory=list, max_length=MOST_STOPS)
    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=512)

    @field_validator("n", "stream", "stop", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any, info: Any) -> Any:
        if value is None:
            return cls.model_fields[info.field_name].get_default(call_default_factory=True)
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_list(cls, value: Any) -> Any:
        stops = [value] if isinstance(value, str) else value
        if isinstance(stops, list) and "" in stops:
            raise PydanticCustomError("stop", "must not hold an empty text")
        return stops

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Asking:
        if self.stream_options is not None and not self.stream:
            raise _refused("stream_options", "is allowed only with stream: true")
        return self

    def limit(self) -> int | None:
        """The most tokens that an answer may have; None when the client did not say."""
        return self.max_tokens


class ChatRequest(Asking):
    """POST /v1/chat/completions."""

    neutral = {
        "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
        "parallel_tool_calls": (True, False), "logprobs": (False,), "top_logprobs": (0,), "logit_bias": ({},),
        "presence_penalty": (0,), "frequency_penalty": (0,), "response_format": ({"type": "text"},), "store": (False,),
        "metadata": ({},), "modalities": (["text"],), "audio": (), "prediction": (), "reasoning_effort": (),
        "service_tier": ("auto", "default"), "web_search_options": (), "verbosity": (), "prompt_cache_key": (),
        "safety_identifier": (),
    }  # fmt: skip
    messages: list[WireMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise _refused("max_tokens", "and max_completion_tokens say different things; send one of them")
        return self

    def limit(self) -> int | None:
        """``max_completion_tokens``, or its older name ``max_tokens``."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionRequest(Asking):
    """POST /v1/completions: raw text goes on without a chat template."""

    neutral = {
        "logprobs": (), "echo": (False,), "best_of": (1,), "suffix": ("",), "logit_bias": ({},),
        "presence_penalty": (0,), "frequency_penalty": (0,),
    }  # fmt: skip
    prompt: list[str] = Field(min_length=1, max_length=MOST_PROMPTS)

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt_list(cls, value: Any) -> Any:
        return _texts("prompt", value)


class EmbeddingRequest(Body):
    """POST /v1/embeddings. ``dimensions`` may only repeat the model's own width."""

    model: str
    input: list[str] = Field(min_length=1, max_length=MOST_TEXTS)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = Field(default=None, max_length=512)

    @field_validator("input", mode="before")
    @classmethod
    def _input_list(cls, value: Any) -> Any:
        return _texts("input", value)


class FeedbackRequest(Body):
    """POST /v1/feedback: what somebody says of an answer; at least one of the four."""

    trace_id: str
    rating: Literal[-1, 1] | None = None
    label: str | None = None
    corrected: str | None = None
    comment: str = ""


class RequestError(LuthierError):
    """A request that is refused: HTTP status, the field to blame and OpenAI's error code, where there are such."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    409: "conflict_error", 413: "request_too_large", 429: "rate_limit_error", 503: "service_unavailable_error",
}  # fmt: skip


def error_body(
    message: str, status: int, *, param: str | None = None, code: str | None = None
) -> dict[str, dict[str, str | None]]:
    """``{"error": {"message", "type", "param", "code"}}`` for an HTTP status."""
    kind = TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_bytes(error: RequestError) -> bytes:
    """The body of the response that refuses a request, for what answers below the level of the application."""
    body = error_body(error.message, error.http_status, param=error.param, code=error.code)
    return json.dumps(body, ensure_ascii=True).encode("ascii")


def explain(error: ValidationError | Iterable[Any], body: type[BaseModel]) -> RequestError:
    """The RequestError for a body that pydantic refused: every problem in words, the first one's field as ``param``."""
    problems = list(error.errors() if isinstance(error, ValidationError) else error)
    said = [_problem(problem, body) for problem in problems]
    param, _, code = said[0]
    return RequestError("; ".join(dict.fromkeys(text for _, text, _ in said)), param=param, code=code)


def _problem(problem: Mapping[str, Any], body: type[BaseModel]) -> tuple[str | None, str, str]:
    path = [part for part in problem["loc"] if part != "body"]
    context = problem.get("ctx") or {}
    kind = problem["type"]
    if kind == "refused":
        path = [*path, context["field"]]
    param = _dotted(path)
    if kind == "extra_forbidden":
        owner = WireMessage if "messages" in path else StreamOptions if "stream_options" in path else body
        return (
            param,
            f"{param} is not a known field. {did_you_mean(str(path[-1]), owner.model_fields)}",
            "unknown_field",
        )
    if kind == "missing":
        return param, f"{param} is required", "missing_field"
    if not path:
        return None, f"the body must be a JSON object; {problem['msg']}", "invalid_json"
    if kind == "refused":
        return param, f"{param} {context['reason']}", "unsupported_value"
    given = "" if isinstance(problem["input"], dict | list | str) else f"; got {problem['input']!r}"
    custom = kind in ("role", "content", "part", "stop", "texts")
    text = problem["msg"] if custom else problem["msg"][:1].lower() + problem["msg"][1:] + given
    return param, f"{param} {text}" if custom else f"{param}: {text}", "invalid_value"


def _dotted(path: Iterable[Any]) -> str:
    """``messages[0].content`` from ("messages", 0, "content")."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else str(part)
    return out


def _without_neutral(data: dict[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    kept = {}
    for name, value in data.items():
        if name not in neutral:
            kept[name] = value
        elif value is not None and value not in neutral[name]:
            allowed = " or ".join(["leave it out", *(f"send {json.dumps(each)}" for each in neutral[name])])
            raise _refused(name, f"is not supported by this server; {allowed}")
    return kept


def _refused(field: str, reason: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{field} {reason}", {"field": field, "reason": reason})


def _texts(field: str, value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list):
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise PydanticCustomError(
                    "texts",
                    "must be text or a list of texts; got {kind} at {index} (token ids are not accepted)",
                    {"kind": type(text).__name__, "index": index},
                )
            if not text:
                raise PydanticCustomError("texts", "must not hold an empty text; number {index} is", {"index": index})
    return texts
