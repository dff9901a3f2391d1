"""Tool calls in answers: read out of the text, or forced by a constraint."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.engine import Constraint, Sampling
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import Tool, ToolCall
from luthier.data.call_form import CallForm, call_form
from luthier.data.render import Renderer

_ARGUMENT_KEYS = ("arguments", "parameters")
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_BARE = re.compile(r'\s*(?:<\|python_tag\|>)?\s*\[?\s*\{\s*"(?:name|arguments|parameters|type|function|id)"\s*:')
_LONGEST_BEGINNING = 64
_decoder = json.JSONDecoder()


def read_tool_calls(
    renderer: Renderer, text: str, names: Sequence[str] | None = None
) -> tuple[str, tuple[ToolCall, ...]]:
    """The calls in an answer's ``text``, each with an id of its own, and the text around them.

    ``names`` are the tools that were offered: a text that is nothing but JSON in the shape of a call is one only when it names one of them.
    What looks like a call but cannot be read stays text.
    """
    return split_calls(call_form(renderer), text, names)


def split_calls(form: CallForm, text: str, names: Sequence[str] | None = None) -> tuple[str, tuple[ToolCall, ...]]:
    """``read_tool_calls`` for a form that is known."""
    bare = _bare_calls(form, text, names)
    if bare:
        return "", bare
    pieces, calls, at = [], list[ToolCall](), 0
    while form.begin:
        block = next_block(form, text, at)
        if block is None:
            break
        pieces.append(text[at : block.start])
        calls += block.calls
        at = block.end
    pieces.append(text[at:])
    if not calls:
        return text, ()
    kept = [pieces[0].rstrip(), *(piece.strip() for piece in pieces[1:])]
    return "\n".join(piece for piece in kept if piece), tuple(calls)


@dataclass(frozen=True, slots=True)
class Block:
    """Calls that stand together in a text, from ``start`` to ``end``. ``closed``: more text cannot change it."""

    start: int
    end: int
    calls: tuple[ToolCall, ...]
    closed: bool


def next_block(form: CallForm, text: str, at: int) -> Block | None:
    """The first block of calls in ``text`` from ``at``, or None."""
    while form.begin:
        start = text.find(form.begin, at)
        if start < 0:
            return None
        found = _after_begin(form, text, start)
        if found:
            return found
        at = start + len(form.begin)
    return None


def may_be_bare(text: str) -> bool:
    """Whether a text that begins so may turn out to be a bare call."""
    text = text.lstrip()
    if not text:
        return False
    if len(text) >= _LONGEST_BEGINNING:
        return _BARE.match(text) is not None
    return text[0] in "{[" or "<|python_tag|>".startswith(text[:14])


def new_call_id() -> str:
    """An id for a call, unlike any other."""
    return f"call_{secrets.token_hex(12)}"


# ---- reading


def _after_begin(form: CallForm, text: str, start: int) -> Block | None:
    at = _skip(text, start + len(form.begin))
    calls: list[ToolCall] = []
    while True:
        found = _json_calls(text, at) if form.is_json else _named_call(form, text, at)
        if found is None:
            break
        calls += found[0]
        end = found[1]
        at = _skip(text, end)
        if text[at : at + 1] in (",", ";") and form.is_json:
            at = _skip(text, at + 1)
        elif form.is_json or not (joint := form.joint.strip()) or not text.startswith(joint, at):
            break
        else:
            at = _skip(text, at + len(joint))
    if not calls:
        return None
    rest = text[_skip(text, end) :]
    if form.end and rest.startswith(form.end):
        return Block(start, len(text) - len(rest) + len(form.end), tuple(calls), True)
    return Block(start, end, tuple(calls), bool(rest) and not form.end.startswith(rest))


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _json_calls(text: str, at: int) -> tuple[tuple[ToolCall, ...], int] | None:
    """Calls of the JSON value at ``at``, and where it ends."""
    value = _value(text, at)
    if value is None:
        return None
    calls = tuple(_calls_of(value[0]))
    return (calls, value[1]) if calls else None


def _named_call(form: CallForm, text: str, at: int) -> tuple[tuple[ToolCall, ...], int] | None:
    """A call whose name stands before its arguments."""
    lead = form.opening.strip().removeprefix(form.begin).strip()
    at = at + len(lead) if text.startswith(lead, at) else at
    name = _NAME.match(text, at)
    middle = form.middle.strip()
    if name is None or not text.startswith(middle, after := _skip(text, name.end())):
        return None
    value = _value(text, _skip(text, after + len(middle)))
    if value is None or not isinstance(value[0], dict):
        return None
    return (_call(name.group(), value[0]),), value[1]


def _value(text: str, at: int) -> tuple[Any, int] | None:
    """The JSON object or list at ``at``, and where it ends."""
    if text[at : at + 1] not in ("{", "["):
        return None
    try:
        return _decoder.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


def _calls_of(value: Any) -> Iterator[ToolCall]:
    """Calls in a JSON value: one, a list of them, or OpenAI's wire form. None of them when one cannot be read."""
    found = []
    for one in value if isinstance(value, list) else [value]:
        inner = one.get("function", one) if isinstance(one, dict) else None
        inner = inner if isinstance(inner, dict) else one
        name = inner.get("name") if isinstance(inner, dict) else None
        if not isinstance(name, str) or not name:
            return
        arguments: Any = next((inner[key] for key in _ARGUMENT_KEYS if key in inner), {})
        if isinstance(arguments, str):
            arguments = (_value(arguments.strip(), 0) or (None,))[0]
        if not isinstance(arguments, dict):
            return
        found.append(_call(name, arguments))
    yield from found


def _call(name: str, arguments: dict[str, Any]) -> ToolCall:
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False), new_call_id())


def _bare_calls(form: CallForm, text: str, names: Sequence[str] | None) -> tuple[ToolCall, ...]:
    """Calls of a text that is nothing but JSON: the form of templates that mark calls by nothing else, and a frequent slip in others."""
    inner = text.strip().removeprefix("<|python_tag|>").strip()
    if not form.is_json or (names is None and form.begin):
        return ()
    calls: list[ToolCall] = []
    at = 0
    while True:
        found = _json_calls(inner, at)
        if found is None or not all(_is_bare(value) for value in _listed(inner, at)):
            return ()
        calls += found[0]
        at = _skip(inner, found[1])
        if at == len(inner):
            break
        if inner[at] not in ";,":
            return ()
        at = _skip(inner, at + 1)
    return tuple(calls) if names is None or all(call.name in names for call in calls) else ()


def _listed(text: str, at: int) -> list[Any]:
    value = (_value(text, at) or ([],))[0]
    return value if isinstance(value, list) else [value]


def _is_bare(value: Any) -> bool:
    """Whether an object has just the keys of a call, arguments among them."""
    inner = value.get("function", value)
    if isinstance(inner, str):  # some other object that says "function"
        return False
    return any(key in inner for key in _ARGUMENT_KEYS) and set(value) <= {
        "id",
        "type",
        "name",
        "function",
        *_ARGUMENT_KEYS,
    }


# ---- forcing calls


def tool_constraint(renderer: Renderer, sampling: Sampling) -> Constraint | None:
    """What forces the calls that ``sampling`` asks for, in the form of the model's template; None when nothing is forced.

    ``required`` and a tool's name force a call (of several when ``parallel_tool_calls``; of a named tool one), whose arguments follow the tool's JSON
    schema; keywords that cannot be held are left out unless the tool is ``strict``. With ``auto`` a strict tool leaves text free, but a call
    must be right. The grammar is GBNF with three additions: ``%json SCHEMA`` is JSON that follows a schema, ``%text "MARK"`` any text that
    holds no ``MARK`` and does not begin as JSON does, ``%until "MARK"`` such a text and the ``MARK`` after it.

    Raises UnsupportedError for a template that writes arguments as quoted text or whose calls cannot be read, InputError for parameters that are no
    object's schema.
    """
    tools = sampling.tools
    forced = sampling.tool_choice not in ("none", "auto")
    if sampling.tool_choice == "none" or not (forced or any(tool.strict for tool in tools)):
        return None
    form = call_form(renderer)
    if form.quoted:
        raise UnsupportedError(
            "tool_choice: this model's chat template writes arguments as quoted text, so calls cannot be forced or strict",
            hint="use tool_choice auto without strict",
        )
    named = [tool for tool in tools if tool.name == sampling.tool_choice]
    rules = [f"call-{at} ::= {_quoted(tool.name + form.middle)} json-{at}" for at, tool in enumerate(named or tools)]
    rules += [f"json-{at} ::= %json {_parameters(tool)}" for at, tool in enumerate(named or tools)]
    one = " | ".join(f"call-{at}" for at in range(len(named or tools)))
    several = f" ({_quoted(form.joint)} call)*" if form.joint and sampling.parallel_tool_calls and not named else ""
    calls = f"call{several} {_quoted(form.closing)}"
    root = f"{_quoted(form.opening)} {calls}"
    if not forced:
        rules.append(f"text ::= %text {_quoted(form.begin)}")
        root = f"text | {root}"
        if form.begin:
            rules.append(f"lead ::= %until {_quoted(form.begin)}")
            root = f"text | lead {_quoted(form.opening.partition(form.begin)[2])} {calls}"
    return Constraint("grammar", "\n".join([f"root ::= {root}", f"call ::= {one}", *rules]))


def _quoted(text: str) -> str:
    """``text`` as a literal of GBNF."""
    return json.dumps(text, ensure_ascii=False)


def _parameters(tool: Tool) -> str:
    """The JSON schema of a tool's arguments, on one line."""
    try:
        schema = json.loads(tool.parameters)
    except ValueError as error:
        raise InputError(f"tool {tool.name}: parameters are not JSON: {error}") from error
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise InputError(
            f"tool {tool.name}: parameters must be the JSON schema of an object; got {tool.parameters[:60]}"
        )
    loose = {} if tool.strict else {"x-guidance": {"lenient": True}}
    return json.dumps({"type": "object"} | schema | loose, ensure_ascii=False)
