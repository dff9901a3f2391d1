"""JSON schemas that come with requests: for answers, and for the arguments of tools."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jsonschema
import orjson

from luthier.gateway.wire import bad, refuse_type, require_shallow

LONGEST = 262_144
"""Bytes of a schema."""


def read_schema(value: Any, at: str) -> str:
    """A JSON schema (draft 2020-12) as JSON text. Raises for one that is not valid, or that refers to anything outside of itself."""
    if not isinstance(value, dict):
        refuse_type(value, "a JSON schema (an object)", at)
    require_shallow(value, at)
    data = orjson.dumps(value)
    if len(data) > LONGEST:
        raise bad(f"must be at most {LONGEST:,} bytes; got {len(data):,}", at)
    problem = _problem(data)
    if problem is not None:
        raise bad(problem, at)
    return data.decode()


@lru_cache(maxsize=128)
def _problem(data: bytes) -> str | None:
    """What is wrong with a schema; None when nothing is."""
    schema = orjson.loads(data)
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        return f"is not a valid JSON schema: {error.message[:300]}{f' (at {place[1:]})' if place else ''}"
    waiting: list[Any] = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            problem = _reference_problem(each, schema)
            if problem is not None:
                return problem
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
    return None


def _reference_problem(each: dict[str, Any], schema: dict[str, Any]) -> str | None:
    """A reference must lead to a place in the schema itself, and on from there to something that is no reference."""
    seen: list[str] = []
    while isinstance(each, dict) and isinstance(reference := each.get("$ref"), str):
        if reference in seen:
            return f"refers to itself without end: {' -> '.join([*seen, reference])[:300]}"
        seen.append(reference)
        found = _at(reference, schema)
        if found is None:
            return f"may refer to places in itself only (#/$defs/...); got $ref {reference[:200]!r}, which is none"
        each = found
    return None


def _at(reference: str, schema: Any) -> Any:
    if not reference.startswith("#"):
        return None
    found = schema
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isascii() and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict) and name in found:
            found = found[name]
        else:
            return None
    return found if reference in ("#",) or reference.startswith("#/") else None
