"""Request bodies and error bodies of the OpenAI wire format: how they are read, and how a refusal is said.

A field that this server cannot honour is refused by name, never ignored; the value that a field has when it does nothing
(``presence_penalty: 0``, ``tools: []``, null) is let through. Unknown fields are refused with the near names.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from luthier.core.errors import LuthierError, did_you_mean

Read = TypeVar("Read", bound="Body")

MOST_DEEP = 64
"""Levels of nesting that a JSON schema, or anything else that is passed on as it came, may have."""
MOST_FIELDS = 256
LONGEST_SAID = 80
"""Characters of what came that an error message repeats."""


class Body(BaseModel):
    """A request body. ``neutral`` lists the fields of the format that are not supported, with the values that do nothing.

    A field that is null counts as left out, unless it is required.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if len(data) > MOST_FIELDS:
            raise bad(f"the object has {len(data)} fields, more than anything that is known here")
        kept, neutral, known = {}, cls.neutral, cls.model_fields
        for name, value in data.items():
            if name in neutral:
                if value is not None and not _among(value, neutral[name]):
                    allowed = " or ".join(["leave it out", *(f"send {json.dumps(each)}" for each in neutral[name])])
                    raise bad(f"is not supported by this server; {allowed}", f".{name}", code="unsupported_value")
            elif value is not None or name not in known or known[name].is_required():
                # 2.0 is a whole number in JSON
                kept[name] = int(value) if type(value) is float and value.is_integer() else value
        return kept


def _among(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether ``value`` is one of ``allowed``; false is not 0."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed)


def read(data: bytes, kind: type[Read]) -> Read:
    """A request's body as ``kind``. Raises RequestError that names the field, or says why it is no JSON object.

    Of a name that occurs twice in an object the last one counts.
    """
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body must be a JSON object; {error}", code="invalid_json") from error
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise explain(error, kind) from error


class StreamOptions(Body):
    """``include_usage`` asks for one more chunk with the token counts."""

    neutral = {"include_obfuscation": (False,)}
    include_usage: bool = False


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


def bad(reason: str, at: str = "", *, code: str = "invalid_value") -> PydanticCustomError:
    """What a validator raises: the field's name (and ``at``, the place within it: ``[0].name``) is put before ``reason``."""
    return PydanticCustomError("wire", "{reason}", {"reason": reason, "at": at, "code": code})


def require_known(data: Mapping[str, Any], known: Collection[str], at: str) -> None:
    """Raise for a name in the object at ``at`` that is not among ``known``, with the near ones. Null counts as left out."""
    for name, value in data.items():
        if name not in known and value is not None:
            said = name[:LONGEST_SAID]
            raise bad(f"is not a known field. {did_you_mean(said, known)}", f"{at}.{said}", code="unknown_field")


def expect(value: Any, kind: type, what: str, at: str) -> Any:
    """``value`` when it is a ``kind``; raises for another."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        refuse_type(value, what, at)
    return value


def optional(value: Any, kind: type, what: str, at: str, default: Any) -> Any:
    """``default`` for null, else ``value`` when it is a ``kind``; raises for another."""
    return default if value is None else expect(value, kind, what, at)


def refuse_type(value: Any, what: str, at: str) -> NoReturn:
    """Raise for a value that should be ``what``."""
    if isinstance(value, str) and len(value) > LONGEST_SAID:
        value = value[:LONGEST_SAID] + "…"
    said = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else json.dumps(value)
    raise bad(f"must be {what}; got {said}", at)


def require_shallow(value: Any, at: str, most: int = MOST_DEEP) -> None:
    """Raise for a value that is nested deeper than ``most``: what walks through it later does so by recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > most:
            raise bad(f"must not be nested deeper than {most} levels", at)
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]


def explain(error: ValidationError | Iterable[Any], body: type[BaseModel]) -> RequestError:
    """The RequestError for a body that pydantic refused: every problem in words, the first one's field as ``param``."""
    problems = list(error.errors() if isinstance(error, ValidationError) else error)
    said = [_problem(problem, body) for problem in problems[:20]]
    param, _, code = said[0]
    return RequestError("; ".join(dict.fromkeys(text for _, text, _ in said)), param=param, code=code)


def _problem(problem: Mapping[str, Any], body: type[BaseModel]) -> tuple[str | None, str, str]:
    path = [part for part in problem["loc"] if part != "body"]
    context = problem.get("ctx") or {}
    kind = problem["type"]
    param = _dotted(path)
    if kind == "wire":
        param += context["at"] if param or not context["at"].startswith(".") else context["at"][1:]
        return param or None, f"{param} {context['reason']}".lstrip(), context["code"]
    if kind == "extra_forbidden":
        owner = StreamOptions if path[0] == "stream_options" else body
        return (
            param,
            f"{param} is not a known field. {did_you_mean(str(path[-1])[:LONGEST_SAID], owner.model_fields)}",
            "unknown_field",
        )
    if kind == "missing":
        return param, f"{param} is required", "missing_field"
    if not path:
        return None, f"the body must be a JSON object; {problem['msg']}", "invalid_json"
    given = "" if isinstance(problem["input"], dict | list | str) else f"; got {problem['input']!r}"
    return param, f"{param}: {problem['msg'][:1].lower()}{problem['msg'][1:]}{given}", "invalid_value"


def _dotted(path: Iterable[Any]) -> str:
    """``messages[0].content`` from ("messages", 0, "content")."""
    out = ""
    for part in path:
        name = str(part)[:LONGEST_SAID]
        out += f"[{name}]" if isinstance(part, int) else f".{name}" if out else name
    return out


def text_list(value: Any) -> list[str]:
    """One text or a list of them, none of them empty, as a list. Raises for anything else."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        refuse_type(value, "text or a list of texts", "")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            kind = "token ids are not accepted, send text" if isinstance(text, int | list) else type(text).__name__
            raise bad(f"must be text or a list of texts; number {index} is something else ({kind})")
        if not text:
            raise bad(f"must not hold an empty text; number {index} is")
    return texts


TEXTS_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
    ]
}
