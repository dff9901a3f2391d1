"""Messages: what people, models and tools say to one another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from luthier.core.errors import InputError

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant asks for; ``arguments`` is JSON text, as in the OpenAI wire format."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that an assistant may call; ``parameters`` is its JSON schema as JSON text (``strict``: arguments always follow it)."""

    name: str
    description: str = ""
    parameters: str = '{"type": "object", "properties": {}}'
    strict: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The form that chat templates and the OpenAI wire format read."""
        function: dict[str, Any] = {"name": self.name, "description": self.description}
        function["parameters"] = json.loads(self.parameters)
        return {"type": "function", "function": function | ({"strict": True} if self.strict else {})}


@dataclass(frozen=True, slots=True)
class Image:
    """A picture in a user turn: an ``https:`` or ``data:`` URL, and after how many characters of the turn's text it stands."""

    url: str
    at: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``role`` is one of ``system user assistant tool``. ``images`` only engines with the parameter ``images`` can see."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    images: tuple[Image, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InputError(f"role must be one of {', '.join(ROLES)}; got {self.role!r}")

    def as_dict(self) -> dict[str, Any]:
        """The form that chat templates and the OpenAI wire format read."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            out["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in self.tool_calls
            ]
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if self.images:
            out["content"] = self._parts()
        return out

    def _parts(self) -> list[dict[str, Any]]:
        """Text and images in order, as the OpenAI wire format writes them."""
        parts: list[dict[str, Any]] = []
        start = 0
        for image in sorted(self.images, key=lambda each: each.at):
            if image.at > start:
                parts.append({"type": "text", "text": self.content[start : image.at]})
                start = image.at
            shown = {"url": image.url} | ({"detail": image.detail} if image.detail else {})
            parts.append({"type": "image_url", "image_url": shown})
        if start < len(self.content):
            parts.append({"type": "text", "text": self.content[start:]})
        return parts

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Message:
        """Read ``{"role", "content", ...}``; raises InputError that names what is wrong."""
        role, content = data.get("role"), data.get("content")
        if not isinstance(role, str):
            raise InputError(f"message.role must be one of {', '.join(ROLES)}; got {role!r}")
        if content is None and data.get("tool_calls"):
            content = ""
        if not isinstance(content, str):
            raise InputError(f"message.content must be text; got {type(content).__name__}")
        calls = []
        for call in data.get("tool_calls") or ():
            function = call.get("function", call)
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise InputError("message.tool_calls entries need a function name")
            arguments = function.get("arguments", "{}")
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            calls.append(ToolCall(function["name"], arguments, str(call.get("id", ""))))
        return Message(role, content, tuple(calls), data.get("tool_call_id"))


Conversation: TypeAlias = tuple[Message, ...]
"""Turns, oldest first."""

Prompt: TypeAlias = str | Conversation
"""What an engine is asked: a conversation (goes through the chat template), or raw text (does not)."""


def user(text: str) -> Conversation:
    """A conversation of one user turn."""
    return (Message("user", text),)


def last_user_text(prompt: Prompt) -> str:
    """The text of the last user turn, or the raw text itself."""
    if isinstance(prompt, str):
        return prompt
    for message in reversed(prompt):
        if message.role == "user":
            return message.content
    raise InputError("messages need at least one user turn; got none")
