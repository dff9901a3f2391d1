"""The form that a request wants its answer to have, in OpenAI's words (``response_format``) and in vLLM's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import PlainValidator, WithJsonSchema

from luthier.core.engine import Constraint
from luthier.gateway.api.schemas import read_schema
from luthier.gateway.api.wire import bad, expect, optional, refuse_type, require_known

MOST_CHOICES = 1024
LONGEST = 65_536
"""Characters of a pattern or a grammar."""
KINDS = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
"""The names in ``structured_outputs`` (and after ``guided_``), and the kinds of constraint that they are."""
_FORMATS = "text, json_object, json_schema"


def read_response_format(value: Any) -> Constraint | None:
    """``{"type": "text" | "json_object"}`` or ``{"type": "json_schema", "json_schema": {"name", "schema", "strict"}}``.

    The answer follows the schema whether ``strict`` is said or not.
    """
    expect(value, dict, f"an object whose type is one of {_FORMATS}", "")
    if value.get("type") != "json_schema":
        return _plain_format(value, "")
    require_known(value, ("type", "json_schema"), "")
    held = expect(value.get("json_schema"), dict, "an object with name and schema", ".json_schema")
    return _schema_format(held, ".json_schema", ("name", "description", "schema", "strict"))


@dataclass(frozen=True, slots=True)
class SaidFormat:
    """A form, and the words in which it was asked for: a response repeats them."""

    constraint: Constraint | None
    said: dict[str, Any]


def read_text_format(value: Any) -> SaidFormat:
    """The Responses API's ``text.format``: like ``response_format``, with the schema's fields beside ``type``."""
    expect(value, dict, f"an object whose type is one of {_FORMATS}", "")
    if value.get("type") != "json_schema":
        return SaidFormat(_plain_format(value, ""), value)
    form = _schema_format(value, "", ("type", "name", "description", "schema", "strict"))
    return SaidFormat(form, value)


def _plain_format(value: dict[str, Any], at: str) -> Constraint | None:
    if value.get("type") not in ("text", "json_object"):
        refuse_type(value.get("type"), f"one of {_FORMATS}", f"{at}.type")
    require_known(value, ("type",), at)
    return Constraint("json") if value["type"] == "json_object" else None


def _schema_format(held: dict[str, Any], at: str, known: tuple[str, ...]) -> Constraint:
    require_known(held, known, at)
    expect(held.get("name"), str, "text", f"{at}.name")
    optional(held.get("description"), str, "text", f"{at}.description", "")
    optional(held.get("strict"), bool, "true or false", f"{at}.strict", False)
    return Constraint("json_schema", read_schema(held.get("schema"), f"{at}.schema"))


def read_structured_outputs(value: Any) -> Constraint | None:
    """vLLM's ``{"json" | "regex" | "choice" | "grammar": ..., "json_object": true}``, one of them."""
    expect(value, dict, f"an object with one of {', '.join([*KINDS, 'json_object'])}", "")
    require_known(value, (*KINDS, "json_object"), "")
    given = [name for name in KINDS if value.get(name) is not None]
    if optional(value.get("json_object"), bool, "true or false", ".json_object", False):
        given.append("json_object")
    if len(given) > 1:
        raise bad(f"may ask for one form only; got {', '.join(given)}")
    if not given:
        return None
    return Constraint("json") if given[0] == "json_object" else read_form(given[0], value[given[0]], f".{given[0]}")


def read_form(name: str, value: Any, at: str = "") -> Constraint:
    """The constraint of one of vLLM's names. ``json`` may be a schema or its text; a grammar is GBNF whose start is ``root``."""
    if name == "json":
        return Constraint("json_schema", read_schema(_from_text(value, at) if isinstance(value, str) else value, at))
    if name == "choice":
        return Constraint("choice", _choices(value, at))
    text = expect(value, str, "text", at)
    if not 1 <= len(text) <= LONGEST:
        raise bad(f"must have 1 to {LONGEST:,} characters; got {len(text):,}", at)
    return Constraint("regex" if name == "regex" else "grammar", text)


def _from_text(value: str, at: str) -> Any:
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise bad(f"must be a JSON schema, or one as text; {error}", at) from error


def _choices(value: Any, at: str) -> str:
    expect(value, list, "a list of texts", at)
    if not 1 <= len(value) <= MOST_CHOICES:
        raise bad(f"must hold 1 to {MOST_CHOICES} texts; got {len(value)}", at)
    for number, each in enumerate(value):
        if not isinstance(each, str) or not each:
            refuse_type(each, "text that is not empty", f"{at}[{number}]")
    return orjson.dumps(value).decode()


_SCHEMA = {
    "name": {"type": "string"}, "description": {"type": "string"}, "schema": {"type": "object"},
    "strict": {"type": "boolean"},
}  # fmt: skip


def _format_schema(*, flat: bool) -> dict[str, Any]:
    held: dict[str, Any] = {"type": "object", "required": ["name", "schema"], "properties": _SCHEMA}
    nested = held | {"additionalProperties": False}
    inner = held["properties"] if flat else {"json_schema": nested}
    required = ["type", *(held["required"] if flat else inner)]
    return {
        "anyOf": [
            {
                "type": "object",
                "required": ["type"],
                "properties": {"type": {"enum": ["text", "json_object"]}},
                "additionalProperties": False,
            },
            {
                "type": "object",
                "required": required,
                "properties": {"type": {"const": "json_schema"}, **inner},
                "additionalProperties": False,
            },
        ]
    }


_LONG = {"type": "string", "minLength": 1, "maxLength": LONGEST}
_FORMS_SCHEMA: dict[str, Any] = {
    "type": "object", "maxProperties": 1, "additionalProperties": False,
    "properties": {
        "json": {"type": "object"}, "regex": _LONG, "grammar": _LONG,
        "choice": {
            "type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MOST_CHOICES,
        },
        "json_object": {"type": "boolean"},
    },
}  # fmt: skip


def _named(name: str) -> Any:
    return lambda value: read_form(name, value)


ResponseFormat = Annotated[
    Constraint | None, PlainValidator(read_response_format), WithJsonSchema(_format_schema(flat=False))
]
TextFormat = Annotated[SaidFormat, PlainValidator(read_text_format), WithJsonSchema(_format_schema(flat=True))]
PLAIN_TEXT = SaidFormat(None, {"type": "text"})
StructuredOutputs = Annotated[Constraint | None, PlainValidator(read_structured_outputs), WithJsonSchema(_FORMS_SCHEMA)]
GuidedJson = Annotated[Constraint, PlainValidator(_named("json")), WithJsonSchema(_FORMS_SCHEMA["properties"]["json"])]
GuidedRegex = Annotated[
    Constraint, PlainValidator(_named("regex")), WithJsonSchema(_FORMS_SCHEMA["properties"]["regex"])
]
GuidedChoice = Annotated[
    Constraint, PlainValidator(_named("choice")), WithJsonSchema(_FORMS_SCHEMA["properties"]["choice"])
]
GuidedGrammar = Annotated[
    Constraint, PlainValidator(_named("grammar")), WithJsonSchema(_FORMS_SCHEMA["properties"]["grammar"])
]
