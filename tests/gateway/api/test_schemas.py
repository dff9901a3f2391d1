from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from pydantic_core import PydanticCustomError

from luthier.gateway.api.schemas import LONGEST, TYPES, problem_of, read_schema

KEYWORDS = [
    "items", "contains", "additionalProperties", "propertyNames", "if", "not", "unevaluatedItems", "contentSchema",
    "prefixItems", "allOf", "anyOf", "oneOf", "$defs", "definitions", "properties", "patternProperties", "dependentSchemas",
    "dependencies", "$comment", "title", "description", "format", "deprecated", "uniqueItems", "maximum", "exclusiveMinimum",
    "maxLength", "minItems", "minProperties", "multipleOf", "enum", "const", "default", "examples", "required",
    "dependentRequired", "type", "unknown",
]  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 2.0, -1.5]) | st.sampled_from([*TYPES, "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(KEYWORDS), values, max_size=3))
def test_the_same_schemas_are_valid_as_by_the_metaschema(schema: dict[str, Any]) -> None:
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
        valid = True
    except jsonschema.SchemaError:
        valid = False
    assert (problem_of(orjson.dumps(schema)) is None) is valid


class Node(BaseModel):
    """A tree."""

    name: str = Field(pattern="^[a-z]+$", max_length=5)
    size: float = Field(gt=0, multiple_of=0.5)
    children: list[Node] = Field(max_length=3)
    tags: dict[str, int | None] = {}


def test_what_pydantic_writes_is_read() -> None:
    schema = Node.model_json_schema()
    assert json.loads(read_schema(schema, "")) == schema


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    schema = {"type": "object", "properties": {"$ref": {"type": "string"}, "type": {"type": "integer"}, "required": {}}}
    assert json.loads(read_schema(schema, "")) == schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, 'type must be one of .*; got "strin"'),
        ({"properties": {"a": {"items": 5}}}, "properties.a.items must be a schema"),
        ({"anyOf": [{"minLength": -1}]}, r"anyOf\[0\].minLength must be a whole number"),
        ({"required": "a"}, "required must be a list of texts"),
        ({"enum": "x" * 1000}, "enum must be a list; got .{80}…"),
        ({"$ref": "#"}, "without end: # -> #"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "without end"),
        ({"items": {"$ref": "other.json"}}, "in itself only .*other.json"),
        ({"items": {"$ref": "file:///etc/passwd"}}, "in itself only"),
        ({"items": {"$ref": "#/$defs/none"}}, "in itself only"),
        ({"items": {"$ref": "#anchor"}}, "in itself only"),
        ({"items": {"$ref": "#/required/0"}, "required": ["x"]}, "in itself only"),
        ({"allOf": [{}] * (LONGEST // 3)}, "at most 131,072 bytes"),
    ],
)
def test_what_is_wrong_is_said(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(PydanticCustomError, match=words) as raised:
        read_schema(schema, "")
    assert len(str(raised.value)) < 600


def test_references_that_are_fine() -> None:
    tree = {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "object", "properties": {"next": {"$ref": "#"}}}}}
    assert problem_of(orjson.dumps(tree)) is None
    assert problem_of(orjson.dumps({"prefixItems": [{"type": "string"}, {"$ref": "#/prefixItems/0"}]})) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{}] * (LONGEST // 3 - 10)},
        {"properties": {f"p{number}": {"type": "string"} for number in range(4500)}},
        {"$defs": {f"{n}": {"$ref": f"#/$defs/{n + 1}"} for n in range(4000)} | {"4000": {}}},
        {"properties": {f"{n}": {"$ref": "#/properties/0"} for n in range(1, 3500)} | {"0": {}}},
    ],
    ids=["list", "properties", "chain", "many to one"],
)
def test_a_schema_that_is_large_on_purpose_holds_nobody_up(schema: dict[str, Any]) -> None:
    data = orjson.dumps(schema)
    assert LONGEST / 2 < len(data) <= LONGEST
    start = time.process_time()
    assert problem_of(data) is None
    assert time.process_time() - start < 1.0
