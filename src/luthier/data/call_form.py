"""How a model's chat template writes tool calls.

Each family of models writes calls in its own way. What this model's way is, its template says: a probe conversation with one call and one
with two are rendered, and what stands around names and arguments is the form (``CallForm``). So a new model needs no entry anywhere.
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from dataclasses import dataclass
from typing import Any

from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import Message, ToolCall
from luthier.data.render import Renderer

_NAMES = ("probe_first", "probe_second")
_ARGUMENTS = {"probe_key": "probe_value"}
_IDS = ("probe0001", "probe0002")
_THOUGHTS = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_decoder = json.JSONDecoder()


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
    sides = _around_json(opening, middle, closing)
    begin, end = sides or (opening, closing)
    tokens = tuple(dict.fromkeys(renderer.special_in("".join((opening, middle, joint, closing)))))
    return CallForm(opening, middle, joint, closing, quoted, sides is not None, begin.strip(), end.strip(), tokens)


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
        if value == _ARGUMENTS or (quoted and _read(value) == _ARGUMENTS):
            return before, rest[: place.start()], rest[end:], quoted
    return None


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _around_json(opening: str, middle: str, closing: str) -> tuple[str, str] | None:
    """What stands before and after the JSON value that holds name and arguments of a call; None when there is no such value."""
    whole = f"{opening}x{middle}{{}}{closing}"
    for place in re.finditer(r"[\[{]", opening):
        try:
            _, end = _decoder.raw_decode(whole, place.start())
        except ValueError:
            continue
        if end > len(whole) - len(closing):
            return whole[: place.start()], whole[end:]
    return None


def _without_id(text: str) -> str:
    """A call's id, which models are not taught to write, is left out."""
    return re.sub(rf',\s*"id":\s*"(?:{"|".join(_IDS)})"', "", text)
