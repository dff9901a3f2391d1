"""JSON in answers: the whole text, a fenced block, or the first value that stands somewhere in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal, NoReturn

Where = Literal["whole", "fenced", "anywhere"]
MOST_LEVELS = 100  # of nesting in values that are compared
LONGEST = 1_000_000  # characters that are read
_SEARCHED = 200_000  # characters in which a part that is JSON is looked for
_MOST_STARTS = 500  # brackets that are tried: text full of them must not take forever
_FENCE = "```"
_LANGUAGE = re.compile(r"\s*[A-Za-z0-9_+-]*[ \t]*\r?\n|\s*json(?=\s*[{\[])", re.IGNORECASE)
_START = re.compile(r"[{\[]")


def read_json(text: str) -> Any:
    """The value that ``text`` is (RFC 8259: no NaN, no comments). Raises ValueError, also for what is nested too deep to read."""
    if len(text) > LONGEST:
        raise ValueError(f"longer than {LONGEST:,} characters")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def find_json(text: str, where: Where) -> Any:
    """The JSON value of an answer. ``whole``: the text itself; ``fenced``: or its only fenced block; ``anywhere``: or the first value that
    is a part of it. Raises ValueError when there is none."""
    try:
        return read_json(text)
    except ValueError:
        if where == "whole":
            raise
    blocks = fenced(text)
    if len(blocks) == 1 or (blocks and where == "anywhere"):
        try:
            return read_json(blocks[0])
        except ValueError:
            if where == "fenced":
                raise
    if where == "anywhere":
        for value in parts(text):
            return value
    raise ValueError("there is no JSON in it")


def fenced(text: str) -> list[str]:
    """What stands between pairs of fences (three backticks), without the name of its language."""
    pieces = text[:LONGEST].split(_FENCE)
    inside = pieces[1 : len(pieces) - 1 : 2]
    return [piece[found.end() :] if (found := _LANGUAGE.match(piece)) else piece for piece in inside]


def parts(text: str) -> Iterator[Any]:
    """Every object and list that stands in ``text`` and is not inside another one, in order."""
    text = text[:_SEARCHED]
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    place = 0
    for _ in range(_MOST_STARTS):
        found = _START.search(text, place)
        if found is None:
            return
        try:
            value, place = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            place = found.start() + 1
            continue
        yield value


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested more than ``levels`` deep."""
    level = [value]
    for _ in range(levels + 1):
        inner = [one for one in level if isinstance(one, dict | list)]
        if not inner:
            return False
        level = [part for one in inner for part in (one.values() if isinstance(one, dict) else one)]
    return True


def canonical(value: Any) -> str:
    """One text for equal values: order of keys and 1 against 1.0 do not matter; true is not 1. Raises ValueError when nested too deep."""
    if is_deeper(value, MOST_LEVELS):
        raise ValueError(f"nested more than {MOST_LEVELS} deep")
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
