"""Tools in plain turns, for chat templates that have no place for them.

The tools stand in the system turn, a call is a JSON object between ``<tool_call>`` tags in the assistant's turn (the form that Hermes and
Qwen models are taught), a result is a user's turn between ``<tool_response>`` tags. Training and serving both get these turns from the
renderer, so a model that was tuned on them is asked just so.

The wording decides which ids a conversation with tools becomes. It belongs to version 1 of the rendering rules
(``luthier.data.render.RENDERING``): another wording is another version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.core.errors import InputError
from luthier.core.message import Conversation, Message, ToolCall
from luthier.data.prompts import is_chinese

_ENGLISH = """You can call these tools. Each line is one tool: its name, what it does, and the JSON schema of its arguments.
<tools>
{tools}
</tools>
To call a tool, write its name and its arguments as one JSON object between tags:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>
Write one such block for each call. The results come in the next turn between <tool_response> and </tool_response>."""

_CHINESE = """你可以调用以下工具。每行是一个工具:名称、用途,以及参数的 JSON schema。
<tools>
{tools}
</tools>
调用工具时,把名称和参数写成一个 JSON 对象,放在标签之间:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>
每次调用写一个这样的块。结果会在下一轮放在 <tool_response> 和 </tool_response> 之间。"""


def plain_turns(
    messages: Conversation, tools: Sequence[Mapping[str, Any]], *, system: bool
) -> tuple[Conversation, tuple[int, ...]]:
    """``messages`` without tools: only texts, roles system, user and assistant; and where in ``messages`` each of them comes from.

    ``system``: the template has system turns; otherwise the tools stand before the first user turn's text. ``tools`` are as the OpenAI
    wire format writes them. The language is that of the system turn and the first user turn, which never change while a conversation
    grows. Raises InputError for a call whose arguments are not JSON.
    """
    out: list[Message] = []
    origins: list[int] = []
    for at, message in enumerate(messages):
        turn = _plain(message)
        if message.role == "tool" and out and messages[at - 1].role == "tool":
            out[-1] = Message("user", f"{out[-1].content}\n{turn.content}")  # results of one turn's calls come together
            continue
        out.append(turn)
        origins.append(at)
    if tools:
        told = (_CHINESE if is_chinese(_opening(messages)) else _ENGLISH).format(tools="\n".join(map(_line, tools)))
        if system and out[0].role == "system":
            out[0] = Message("system", f"{out[0].content}\n\n{told}" if out[0].content else told)
        elif system:
            out.insert(0, Message("system", told))
            origins.insert(0, -1)
        else:
            first = next((at for at, turn in enumerate(out) if turn.role == "user"), None)
            if first is None:
                raise InputError("tools need a user turn; got none")
            before = f"{told}\n\n"
            images = tuple(replace(image, at=image.at + len(before)) for image in out[first].images)
            out[first] = Message("user", before + out[first].content, images=images)
    return tuple(out), tuple(origins)


def call_text(call: ToolCall) -> str:
    """A call as it stands in an assistant's turn."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError as error:
        raise InputError(f"tool call {call.name!r}: arguments are not JSON: {error}") from error
    told = json.dumps({"name": call.name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{told}\n</tool_call>"


def _plain(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
    if message.tool_calls:
        said = [message.content] if message.content else []
        return Message(message.role, "\n".join([*said, *map(call_text, message.tool_calls)]))
    return message


def _line(tool: Mapping[str, Any]) -> str:
    function = tool["function"]
    shown = {key: function[key] for key in ("name", "description", "parameters") if function.get(key)}
    return json.dumps(shown, ensure_ascii=False)


def _opening(messages: Conversation) -> str:
    """What the conversation begins with, up to the first user turn."""
    texts = []
    for message in messages:
        texts.append(message.content)
        if message.role == "user":
            break
    return "\n".join(texts)
