"""Texts that have a form: constrained answers and the arguments of tool calls, for the fake engine."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import regex

from luthier.core.engine import Constraint
from luthier.core.errors import InputError, UnsupportedError


def in_form(constraint: Constraint, told: str, pick: int) -> str:
    """``told`` when it is what ``constraint`` asks for; else a text that is, ``pick`` choosing among choices.

    Raises InputError for a constraint that cannot be read, UnsupportedError for one that no text is found for.
    """
    value = constraint.value
    if constraint.kind == "choice":
        choices = [str(each) for each in json.loads(value)]
        return told if told in choices else choices[pick % len(choices)]
    if constraint.kind == "regex":
        if regex.fullmatch(value, told):
            return told
        raise UnsupportedError(f"the fake engine has no answer that matches {value!r}; give it one in answers")
    if constraint.kind == "grammar":
        raise UnsupportedError("the fake engine cannot follow a grammar")
    schema = json.loads(value) if constraint.kind == "json_schema" else {"type": "object"}
    return told if _is_valid(told, schema) else json.dumps(example(schema), ensure_ascii=False)


def example(schema: Any) -> Any:
    """A value that is valid for a JSON schema. Raises InputError for a bad schema, UnsupportedError where none is found."""
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise InputError(f"the JSON schema is not valid: {error.message}") from error
    try:
        value = _value(schema, schema)
    except RecursionError as error:
        raise UnsupportedError("the JSON schema requires a value inside of itself, so that no value ends") from error
    if not jsonschema.Draft202012Validator(schema).is_valid(value):
        raise UnsupportedError("the fake engine found no value for the JSON schema; give it an answer that is valid")
    return value


def _is_valid(text: str, schema: Any) -> bool:
    try:
        return bool(jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)))
    except ValueError:
        return False


def _value(schema: Any, root: Any) -> Any:
    if not isinstance(schema, dict):
        return "word"
    if "$ref" in schema:
        found = root
        for part in schema["$ref"].removeprefix("#").strip("/").split("/"):
            found = found[part] if part else found
        return _value(found, root)
    for key in ("const", "enum", "anyOf", "oneOf", "allOf"):
        if key in schema:
            first = schema[key] if key == "const" else schema[key][0]
            return first if key in ("const", "enum") else _value(first, root)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return _of_type(kind[0] if isinstance(kind, list) else kind, schema, root)


def _of_type(kind: str, schema: dict[str, Any], root: Any) -> Any:
    if kind == "object":
        return {name: _value(schema.get("properties", {}).get(name, {}), root) for name in schema.get("required", ())}
    if kind == "array":
        return [_value(schema.get("items", {}), root) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return "word".ljust(schema.get("minLength", 0), "s")[: schema.get("maxLength")]
    if kind in ("integer", "number"):
        return max(schema.get("minimum", 0), schema.get("exclusiveMinimum", -1) + 1)
    return False if kind == "boolean" else None
