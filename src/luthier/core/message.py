"""Messages: what people, models and tools say to one another."""

from __future__ import annotations

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
class Message:
    """One turn. ``role`` is one of ``system user assistant tool``."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

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
        return out

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
                import json

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
