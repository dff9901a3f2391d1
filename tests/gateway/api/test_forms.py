from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.core.engine import Constraint
from luthier.gateway.api.chat import ChatRequest
from luthier.gateway.api.completions import CompletionRequest
from luthier.gateway.api.wire import RequestError, read

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))


def ask(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return read(json.dumps(body).encode(), ChatRequest)


def named(schema: Any, **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **more}}}


@pytest.mark.parametrize(
    ("fields", "constraint", "field"),
    [
        ({"response_format": {"type": "text"}}, None, ""),
        ({"response_format": {"type": "json_object"}}, Constraint("json"), "response_format"),
        (named(SCHEMA), Constraint("json_schema", TEXT), "response_format"),
        (named(SCHEMA, strict=True, description="d"), Constraint("json_schema", TEXT), "response_format"),
        ({"structured_outputs": {"json": SCHEMA}}, Constraint("json_schema", TEXT), "structured_outputs"),
        ({"structured_outputs": {"regex": "a+"}}, Constraint("regex", "a+"), "structured_outputs"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Constraint("choice", '["a","b"]'), "structured_outputs"),
        ({"structured_outputs": {"json_object": True}}, Constraint("json"), "structured_outputs"),
        ({"structured_outputs": {"json": None, "regex": "a"}}, Constraint("regex", "a"), "structured_outputs"),
        ({"structured_outputs": {}}, None, ""),
        ({"guided_json": SCHEMA}, Constraint("json_schema", TEXT), "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, Constraint("json_schema", TEXT), "guided_json"),
        ({"guided_regex": "[0-9]+"}, Constraint("regex", "[0-9]+"), "guided_regex"),
        ({"guided_choice": ["x"]}, Constraint("choice", '["x"]'), "guided_choice"),
        ({"guided_grammar": 'root ::= "a"'}, Constraint("grammar", 'root ::= "a"'), "guided_grammar"),
    ],
)
def test_every_way_to_ask_for_a_form(fields: dict[str, Any], constraint: Constraint | None, field: str) -> None:
    body = ask(**fields)
    assert body.sampling()[0].constraint == constraint
    if constraint is not None:
        assert body.field_of(constraint.kind) == field
        completion = read(json.dumps({"model": "m", "prompt": "x", **fields}).encode(), CompletionRequest)
        assert completion.sampling()[0].constraint == constraint


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": "json"}, "response_format", "object"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        ({"response_format": {"type": "text", "extra": 1}}, "response_format.extra", "not a known"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "object with name and schema"),
        (named(None), "response_format.json_schema.schema", "JSON schema"),
        (named({"type": 3}), "response_format.json_schema.schema", "not a valid JSON schema"),
        (named(SCHEMA, strict="x"), "response_format.json_schema.strict", "true or false"),
        (named(SCHEMA, schemas=1), "response_format.json_schema.schemas", "'schema'"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "one form only"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "not a known"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "1 to"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice[1]", "not empty"),
        ({"guided_choice": []}, "guided_choice", "1 to 1024"),
        ({"guided_choice": ["a"] * 2000}, "guided_choice", "2000"),
        ({"guided_regex": "a" * 70_000}, "guided_regex", "70,000"),
        ({"guided_json": "{"}, "guided_json", "as text"),
        ({"guided_json": "3"}, "guided_json", "object"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_regex", "guided_choice both say"),
        ({"guided_regex": "a", **named(SCHEMA)}, "response_format", "guided_regex both say"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(RequestError) as raised:
        ask(**fields)
    assert (raised.value.http_status, raised.value.param) == (400, param)
    assert words in raised.value.message
