"""Tool calls as models write them, read into one form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.scorers._json import LONGEST, MOST_LEVELS, find_json, is_deeper, parts, read_json

_TAG = re.compile(r"<(?P<tag>tool_call|function_?call)>(?P<inside>.*?)(?:</(?P=tag)>|(?=<(?P=tag)>)|\Z)", re.DOTALL)
_ARGUMENTS = ("arguments", "parameters", "input", "args")
_DEEPEST = 2 * MOST_LEVELS
_LISTS = ("tool_calls", "function_calls", "calls")


@dataclass(frozen=True, slots=True)
class Call:
    """One call. ``arguments`` is a mapping, or whatever stood in its place when it was none."""

    name: str
    arguments: Any


def calls_in(text: str) -> list[Call]:
    """Every call in a text, in order: in tags if there are tags, else in the JSON values that stand in it."""
    text = text[:LONGEST]
    tagged = [found["inside"] for found in _TAG.finditer(text)]
    if tagged:
        return [call for inside in tagged for call in _in_json(inside)]
    return _in_json(text)


def _in_json(text: str) -> list[Call]:
    try:
        return calls_of(find_json(text, "whole"))
    except ValueError:
        return [call for value in parts(text) for call in calls_of(value)]


def calls_of(value: Any) -> list[Call]:
    """Calls in a JSON value: one call, a list of them, or a message that carries them; empty when it is none of these."""
    if is_deeper(value, _DEEPEST):
        return []
    return _calls(value)


def _calls(value: Any) -> list[Call]:
    if isinstance(value, list):
        return [call for one in value for call in _calls(one)]
    if not isinstance(value, Mapping):
        return []
    for key in _LISTS:
        if isinstance(value.get(key), list):
            return _calls(value[key])
    for key in ("function", "function_call"):
        if isinstance(value.get(key), Mapping):
            return _calls(value[key])
    return _one(value)


def _one(value: Mapping[str, Any]) -> list[Call]:
    name = value.get("name", value.get("function"))
    if not isinstance(name, str) or not name:
        return []
    given = [key for key in _ARGUMENTS if key in value]
    if not given and set(value) - {"name", "function", "id", "type"}:
        return []  # some other object that has a name
    return [Call(name, _arguments(value[given[0]] if given else {}))]


def _arguments(value: Any) -> Any:
    """OpenAI writes the arguments as JSON text."""
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = read_json(value) if value.strip() else {}
        except ValueError:
            return value
    return "(nested too deep)" if is_deeper(value, MOST_LEVELS - 2) else value
