"""JSON schemas that come with requests: for answers, and for the arguments of tools.

They are checked against what draft 2020-12 says of each keyword (https://json-schema.org/draft/2020-12/schema). The metaschema itself
would do the same, but its validation takes seconds for a schema that is large on purpose, and nobody else is served meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import orjson

from luthier.gateway.api.wire import bad, refuse_type, require_shallow

LONGEST = 131_072
"""Bytes of a schema."""
TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


def read_schema(value: Any, at: str) -> str:
    """A JSON schema as JSON text. Raises for one that is not valid, or that refers to anything outside of itself."""
    if not isinstance(value, dict):
        refuse_type(value, "a JSON schema (an object)", at)
    require_shallow(value, at)
    data = orjson.dumps(value)
    if len(data) > LONGEST:
        raise bad(f"must be at most {LONGEST:,} bytes; got {len(data):,}", at)
    problem = problem_of(data)
    if problem is not None:
        raise bad(problem, at)
    return data.decode()


@lru_cache(maxsize=256)
def problem_of(data: bytes) -> str | None:
    """What is wrong with a schema that comes as JSON; None when nothing is."""
    schema = orjson.loads(data)
    sound: set[str] = set()
    waiting: list[tuple[Any, str]] = [(schema, "")]
    while waiting:
        each, at = waiting.pop()
        if isinstance(each, bool):
            continue
        if not isinstance(each, dict):
            return f"is not a valid JSON schema: {at[1:]} must be a schema (an object, true or false)"
        for name, value in each.items():
            what, good = _VALUES.get(name, _ANY)
            if not good(value):
                return f"is not a valid JSON schema: {f'{at}.{name}'[1:]} must be {what}; got {_short(value)}"
            waiting.extend((inner, f"{at}.{name}{place}") for place, inner in _inner(name, value))
        if "$ref" in each:
            problem = _reference_problem(each["$ref"], schema, sound)
            if problem is not None:
                return problem
    return None


def _inner(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The schemas that a keyword holds, and where."""
    if name in _ONE:
        yield "", value
    elif name in _LIST:
        yield from ((f"[{number}]", each) for number, each in enumerate(value))
    elif name in _NAMED:
        yield from ((f".{key}", each) for key, each in value.items() if not (name == "dependencies" and _texts(each)))


def _reference_problem(reference: str, schema: Any, sound: set[str]) -> str | None:
    """A reference must lead to a place in the schema itself, and on from there to something that is no reference."""
    seen: dict[str, None] = {}
    while reference not in sound:
        if reference in seen:
            return f"refers to itself without end: {' -> '.join([*seen, reference])[:300]}"
        seen[reference] = None
        found = _at(reference, schema)
        if not isinstance(found, dict | bool):
            return f"may refer to places in itself only (#/$defs/...); got $ref {reference[:200]!r}, which is none"
        if not isinstance(found, dict) or not isinstance(found.get("$ref"), str):
            break
        reference = found["$ref"]
    sound.update(seen)
    return None


def _at(reference: str, schema: Any) -> Any:
    """What a reference names; None for what is not in the schema."""
    if reference == "#":
        return schema
    if not reference.startswith("#/"):
        return None
    found = schema
    for part in reference[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isascii() and name.isdigit() and len(name) < 8 and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict) and name in found:
            found = found[name]
        else:
            return None
    return found


def _short(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 80 else text[:80] + "…"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return _number(value) and value >= 0 and value == int(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value) and len(set(value)) == len(value)


def _type(value: Any) -> bool:
    return value in TYPES if isinstance(value, str) else _texts(value) and bool(value) and set(value) <= set(TYPES)


_Value = tuple[str, Callable[[Any], bool]]

_ANY: _Value = ("anything", lambda value: True)
_TEXT: _Value = ("text", lambda value: isinstance(value, str))
_FLAG: _Value = ("true or false", lambda value: isinstance(value, bool))
_ARRAY: _Value = ("a list", lambda value: isinstance(value, list))
_MAPPING: _Value = ("an object", lambda value: isinstance(value, dict))
_SCHEMAS: _Value = ("a list of schemas that is not empty", lambda value: isinstance(value, list) and bool(value))
_NUMBER: _Value = ("a number", _number)
_COUNT: _Value = ("a whole number, 0 or more", _count)
_TEXTS: _Value = ("a list of texts, each of them once", _texts)

_ONE = frozenset({
    "items", "contains", "additionalProperties", "propertyNames", "if", "then", "else", "not", "unevaluatedItems",
    "unevaluatedProperties", "contentSchema",
})  # fmt: skip
_LIST = frozenset({"prefixItems", "allOf", "anyOf", "oneOf"})
_NAMED = frozenset({"$defs", "definitions", "properties", "patternProperties", "dependentSchemas", "dependencies"})
_VALUES: Mapping[str, _Value] = {
    **dict.fromkeys(_LIST, _SCHEMAS),
    **dict.fromkeys(_NAMED, _MAPPING),
    **dict.fromkeys(
        ("$id", "$schema", "$ref", "$anchor", "$dynamicRef", "$dynamicAnchor", "$comment", "title", "description", "pattern",
         "format", "contentEncoding", "contentMediaType"),
        _TEXT,
    ),
    **dict.fromkeys(("deprecated", "readOnly", "writeOnly", "uniqueItems"), _FLAG),
    **dict.fromkeys(("maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum"), _NUMBER),
    **dict.fromkeys(
        ("maxLength", "minLength", "maxItems", "minItems", "maxContains", "minContains", "maxProperties", "minProperties"),
        _COUNT,
    ),
    "multipleOf": ("a number above 0", lambda value: _number(value) and value > 0),
    "enum": _ARRAY,
    "examples": _ARRAY,
    "required": _TEXTS,
    "dependentRequired": (
        "an object of lists of texts",
        lambda value: isinstance(value, dict) and all(map(_texts, value.values())),
    ),
    "type": (f"one of {', '.join(TYPES)}, or a list of them", _type),
}  # fmt: skip
