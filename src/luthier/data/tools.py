"""Tool calls in answers: how a model's chat template writes them, reading them back.

Each family of models writes calls in its own way. What this model's way is, its template says: a probe conversation with one call and one
with two are rendered, and what stands around names and arguments is the form (``CallForm``). So a new model needs no entry anywhere.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import Message, ToolCall
from luthier.data.render import Renderer

_NAMES = ("probe_first", "probe_second")
_ARGUMENTS = {"probe_key": "probe_value"}
_IDS = ("probe0001", "probe0002")
_ARGUMENT_KEYS = ("arguments", "parameters")
_THOUGHTS = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_BARE = re.compile(r'\s*(?:<\|python_tag\|>)?\s*\[?\s*\{\s*"(?:name|arguments|parameters|type|function|id)"\s*:')
_LONGEST_BEGINNING = 64


@dataclass(frozen=True, slots=True)
class CallForm:
    """How calls stand in an assistant's turn: ``opening`` NAME ``middle`` ARGUMENTS (``joint`` NAME ``middle`` ARGUMENTS)... ``closing``.

    ``joint`` is "" when the template holds one call only. ``quoted``: the arguments are JSON text in a JSON text. ``is_json``: a call is one JSON
    object, so that what a model writes a little otherwise (spaces, order of keys, ``parameters`` for ``arguments``) can be read too.
    ``begin`` is what tells that calls come, ``end`` what follows them; either may be "". ``tokens`` are the special tokens among all that: a
    decoder that drops special tokens must keep these.
    """

    opening: str
    middle: str
    joint: str
    closing: str
    quoted: bool
    is_json: bool
    begin: str
    end: str
    tokens: tuple[str, ...] = ()


def call_form(renderer: Renderer) -> CallForm:
    """How this renderer's template writes calls. Raises UnsupportedError when it does so in a way that cannot be read back."""
    with _lock:
        known = _forms.get(renderer)
    if known is None:
        made = _find(renderer)
        with _lock:
            known = _forms.setdefault(renderer, made)
    return known


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


_decoder = json.JSONDecoder()

# ---- finding the form


_forms: weakref.WeakKeyDictionary[Renderer, CallForm] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _find(renderer: Renderer) -> CallForm:
    one = _written(renderer, 1)
    if one is None:
        raise _unreadable()
    parts = _parts(one, _NAMES[0])
    if parts is None:
        raise _unreadable()
    opening, middle, closing, quoted = parts
    closing = _without_id(closing)
    two = _written(renderer, 2)
    joint = ""
    if two is not None and (both := _parts(two, _NAMES[0])) and (second := _parts(both[2], _NAMES[1])):
        joint = _without_id(second[0])
    if any(id_ in part for id_ in _IDS for part in (opening, middle, closing, joint)):
        raise _unreadable()
    is_json = _is_json(opening, middle, closing)
    begin = opening[: opening.rindex("{")].rstrip("[ \n\t").strip() if is_json else opening.strip()
    end = closing[closing.index("}") + 1 :].strip().removeprefix("]").strip() if is_json else closing.strip()
    tokens = tuple(dict.fromkeys(renderer.special_in("".join((opening, middle, joint, closing)))))
    return CallForm(opening, middle, joint, closing, quoted, is_json, begin, end, tokens)


def _unreadable() -> UnsupportedError:
    return UnsupportedError(
        "tools: this model's chat template writes calls in a form that cannot be read back",
        hint="give the model a template that writes a call's name and its arguments as JSON, or ask without tools",
    )


def _written(renderer: Renderer, count: int) -> str | None:
    """What the template writes as a turn of ``count`` calls, without what ends the turn. None when it refuses."""
    tools = [
        {"name": name, "description": "probe", "parameters": {"type": "object", "properties": {}}} for name in _NAMES
    ]
    asked = (Message("user", "question"),)
    calls = tuple(ToolCall(_NAMES[i], json.dumps(_ARGUMENTS), _IDS[i]) for i in range(count))
    try:
        whole = renderer.text((*asked, Message("assistant", "", calls)), opened=False, tools=tools)
        opened = renderer.text(asked, opened=True, tools=tools)
    except InputError:
        return None
    turn = _THOUGHTS.sub("", whole[_common(whole, opened) :])
    stops = [turn.find(stop) for stop in (renderer.decode([i], special=True) for i in renderer.stop_ids)]
    ends = [at for at in stops if at > turn.rfind(_ARGUMENTS["probe_key"])]
    return turn[: min(ends, default=len(turn))].rstrip()


def _common(one: str, other: str) -> int:
    """Length of the beginning that two texts share."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


def _parts(text: str, name: str) -> tuple[str, str, str, bool] | None:
    """What stands before ``name``, between it and the arguments, after them; whether the arguments are quoted."""
    before, found, rest = text.partition(name)
    if not found:
        return None
    for place in re.finditer(r'[{"]', rest):
        try:
            value, end = _decoder.raw_decode(rest, place.start())
        except ValueError:
            continue
        quoted = isinstance(value, str) and place.group() == '"'
        if value == _ARGUMENTS or (quoted and _value(value, 0) == (_ARGUMENTS, len(value))):
            return before, rest[: place.start()], rest[end:], quoted
    return None


def _is_json(opening: str, middle: str, closing: str) -> bool:
    """Whether name and arguments together are one JSON object."""
    at = opening.rfind("{")
    if at < 0:
        return False
    value = _value(opening[at:] + "x" + middle + "{}" + closing, 0)
    return value is not None and any(True for _ in _calls_of(value[0]))


def _without_id(text: str) -> str:
    """A call's id, which models are not taught to write, is left out."""
    return re.sub(rf',\s*"id":\s*"(?:{"|".join(_IDS)})"', "", text)
