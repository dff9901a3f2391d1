"""The input of the Responses API: text, or items that are turns, calls of tools and what the tools said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from luthier.core.message import Message, ToolCall
from luthier.gateway.api.messages import MOST_MESSAGES, ROLES, read_content
from luthier.gateway.api.wire import RequestError, bad, expect, refuse_type, require_known

_TEXTS = ("input_text", "output_text", "text")
_TYPES = ("message", "function_call", "function_call_output")


def read_input(value: Any) -> tuple[Message, ...]:
    """The messages of text or of a list of items. Raises for what is not allowed, with its place."""
    if isinstance(value, str):
        return (Message("user", value),)
    if not isinstance(value, list):
        refuse_type(value, "text or a list of items", "")
    if not 1 <= len(value) <= MOST_MESSAGES:
        raise bad(f"must hold 1 to {MOST_MESSAGES} items; got {len(value)}")
    messages: list[Message] = []
    for number, item in enumerate(value):
        message = _item(item, f"[{number}]")
        last = messages[-1] if messages else None
        if message.tool_calls and last is not None and last.role == "assistant":
            messages[-1] = replace(last, tool_calls=last.tool_calls + message.tool_calls)
        else:
            messages.append(message)
    return tuple(messages)


def _item(value: Any, at: str) -> Message:
    if not isinstance(value, dict):
        refuse_type(value, "an object", at)
    kind = value.get("type", "message")
    if kind not in _TYPES:
        refuse_type(kind, f"one of {', '.join(_TYPES)}", f"{at}.type")
    if kind == "message":
        return _message(value, at)
    if kind == "function_call":
        require_known(value, ("type", "call_id", "name", "arguments", "id", "status"), at)
        name, arguments = (
            expect(value.get(field), str, what, f"{at}.{field}")
            for field, what in (("name", "text"), ("arguments", "JSON as text"))
        )
        call_id = expect(value.get("call_id"), str, "text", f"{at}.call_id")
        return Message("assistant", "", (ToolCall(name, arguments, call_id),))
    require_known(value, ("type", "call_id", "output", "id", "status"), at)
    call_id = expect(value.get("call_id"), str, "text", f"{at}.call_id")
    said = value.get("output")
    if not isinstance(said, str):
        said, _ = read_content(said, f"{at}.output", images=False, text_types=_TEXTS)
    return Message("tool", said, tool_call_id=call_id)


def _message(value: Mapping[str, Any], at: str) -> Message:
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in ROLES or role == "tool":
        refuse_type(role, f"one of {', '.join(each for each in ROLES if each != 'tool')}", f"{at}.role")
    require_known(value, ("type", "role", "content", "id", "status"), at)
    if isinstance(content, str):
        return Message(ROLES[role], content)
    text, images = read_content(
        content, f"{at}.content", images=role == "user", refusals=role == "assistant", text_types=_TEXTS
    )
    return Message(ROLES[role], text, images=images)


def check_turns(messages: Sequence[Message]) -> None:
    """Raise RequestError for what no model can be asked: no turn of a user, or what a tool said that nobody called."""
    called: set[str | None] = set()
    for message in messages:
        called.update(call.id for call in message.tool_calls)
        if message.role == "tool" and message.tool_call_id not in called:
            raise RequestError(
                f"input holds a function_call_output for call_id {str(message.tool_call_id)[:80]!r}, but no function_call "
                "before it has this id; send the call too, or the previous_response_id of the response that made it",
                param="input",
                code="invalid_value",
            )
    if not any(message.role == "user" for message in messages):
        raise RequestError("input needs at least one user turn; got none", param="input", code="invalid_value")


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    about = {"id": {"type": "string"}, "status": {"type": "string"}}
    return {
        "type": "object", "required": list(required), "properties": {**required, **about, **(optional or {})},
        "additionalProperties": False,
    }  # fmt: skip


_PART: dict[str, Any] = {
    "type": "object", "required": ["type", "text"],
    "properties": {"type": {"enum": list(_TEXTS)}, "text": {"type": "string"}}, "additionalProperties": False,
}  # fmt: skip
_IMAGE: dict[str, Any] = {
    "type": "object", "required": ["type", "image_url"],
    "properties": {
        "type": {"const": "input_image"}, "image_url": {"type": "string"}, "detail": {"enum": ["auto", "low", "high"]},
    },
    "additionalProperties": False,
}  # fmt: skip
_CONTENT: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]}
_SEEN: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": [_PART, _IMAGE]}}]}
_MESSAGE = {"type": {"const": "message"}}
_TEXT = {"type": "string"}
INPUT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array", "minItems": 1, "maxItems": MOST_MESSAGES,
            "items": {
                "anyOf": [
                    _object({"role": {"const": "user"}, "content": _SEEN}, _MESSAGE),
                    _object({"role": {"enum": ["system", "developer", "assistant"]}, "content": _CONTENT}, _MESSAGE),
                    _object({"type": {"const": "function_call"}, "call_id": _TEXT, "name": _TEXT, "arguments": _TEXT}),
                    _object({"type": {"const": "function_call_output"}, "call_id": _TEXT, "output": _CONTENT}),
                ]
            },
        },
    ]
}  # fmt: skip

Input = Annotated[tuple[Message, ...], PlainValidator(read_input), WithJsonSchema(INPUT_SCHEMA)]
