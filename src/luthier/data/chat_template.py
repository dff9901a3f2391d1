"""A tokenizer's chat template: turns into text, and what people wrote kept from becoming markup."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from luthier.core.digest import digest_json
from luthier.core.errors import InputError
from luthier.core.message import Message

Tools: TypeAlias = Sequence[Mapping[str, Any]]
"""Functions that a model may call, as the OpenAI wire format writes them."""


@dataclass(frozen=True, slots=True)
class ToolPlace:
    """What a template has room for: tools, calls and results (``native``), system turns; whether it wants ids of nine letters."""

    native: bool
    system: bool
    short_ids: bool


class ChatTemplate:
    """Writes conversations with one Jinja template. ``special`` finds the text of special tokens."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        self.tokenizer, self.template = tokenizer, template
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special} | {
            *tokenizer.all_special_tokens
        }
        self.special = re.compile("|".join(map(re.escape, sorted(special, key=lambda s: (-len(s), s)))) or r"(?!)")
        self._breaks = re.compile(f"(?=(?:{self.special.pattern}))")

    def apply(self, messages: list[dict[str, Any]], tools: Tools | None, *, opened: bool) -> str:
        """The text of ``messages``; ``opened`` adds the beginning of the next answer. Raises InputError when the template refuses."""
        import jinja2

        try:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tools=[dict(t) for t in tools] if tools else None,
                chat_template=self.template,
                add_generation_prompt=opened,
                tokenize=False,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise InputError(f"the model's chat template refuses this conversation: {error}") from error
        return text

    def protected(self, message: Message, mark: str) -> dict[str, Any]:
        """The message as templates read it, special-token text in it broken up by ``mark``."""
        out: dict[str, Any] = {"role": message.role, "content": self.break_special(message.content, mark)}
        if message.tool_calls:
            out["tool_calls"] = []
            for call in message.tool_calls:
                arguments: Any = self.break_special(call.arguments, mark)
                try:
                    arguments = json.loads(arguments)  # templates write arguments with ``tojson``
                except ValueError as error:
                    raise InputError(f"tool call {call.name!r}: arguments are not JSON: {error}") from error
                name = self.break_special(call.name, mark)
                out["tool_calls"].append(
                    {
                        "id": self._call_id(call.id),
                        "type": "function",
                        "function": {"name": name, "arguments": arguments},
                    }
                )
        if message.tool_call_id is not None:
            out["tool_call_id"] = self._call_id(message.tool_call_id)
        return out

    def protected_value(self, value: Any, mark: str) -> Any:
        """A JSON value, special-token text in it broken up by ``mark``."""
        if isinstance(value, str):
            return self.break_special(value, mark)
        if isinstance(value, Mapping):
            return {self.break_special(str(key), mark): self.protected_value(item, mark) for key, item in value.items()}
        return [self.protected_value(item, mark) for item in value] if isinstance(value, list | tuple) else value

    def _call_id(self, given: str) -> str:
        """A call's id as the template takes it: Mistral's refuse all but nine letters and digits."""
        if not self.place.short_ids or re.fullmatch("[a-zA-Z0-9]{9}", given):
            return given
        return digest_json(given.encode(errors="replace").decode())[:9]

    @cached_property
    def place(self) -> ToolPlace:
        """Where this template has room for tools: it must show the tools, the calls and the results."""
        listed = {"name": "probe_listed", "description": "probe", "parameters": {"type": "object", "properties": {}}}
        called = {"name": "probe_called", "arguments": {"probe_key": "probe_value"}}
        shown = ("probe_listed", "probe_called", "probe_value", "probe_result")
        system = "probe_system" in self._tried([_turn("system", "probe_system"), _turn("user", "question")], [])
        for id_ in ("call_probe", "probe0001"):
            turns = [
                _turn("user", "question"),
                _turn("assistant", "") | {"tool_calls": [{"id": id_, "type": "function", "function": called}]},
                _turn("tool", "probe_result") | {"tool_call_id": id_},
                _turn("assistant", "answer"),
            ]
            text = self._tried(turns, [{"type": "function", "function": listed}])
            if all(word in text for word in shown):
                return ToolPlace(native=True, system=system, short_ids=id_ != "call_probe")
        return ToolPlace(native=False, system=system, short_ids=False)

    def _tried(self, messages: list[dict[str, Any]], tools: Tools) -> str:
        """The text of a probe, or "" when the template refuses it."""
        try:
            return self.apply(messages, tools, opened=False)
        except InputError:
            return ""

    def break_special(self, text: str, mark: str) -> str:
        """``text`` with ``mark`` in every special token's text, so that none is read as the token."""
        if not self.special.search(text):
            return text
        out, last = [], 0
        for match in self._breaks.finditer(text):
            out += [text[last : match.start() + 1], mark]
            last = match.start() + 1
        return "".join([*out, text[last:]])


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
