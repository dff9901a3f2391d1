"""Forms that engines are held to: schemas against jsonschema, numbers against arithmetic, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from tests.models.byte_matchers import lark_of, matcher_of, takes

from luthier.core.engine import Constraint
from luthier.core.errors import InputError
from luthier.models.gbnf import grammar
from luthier.models.gbnf_numbers import number
from luthier.models.gbnf_reader import Grammar, read_gbnf
from luthier.models.gbnf_rules import Rules
from luthier.models.guidance import guidance
from luthier.models.patterns import Chars, Choice, Node, Ref, Repeat


@lru_cache(maxsize=64)
def _compiled(constraint: Constraint) -> tuple[Callable[[], LLMatcher], ...]:
    """As torch follows it, and as llama.cpp is told it."""
    return matcher_of(guidance(constraint)).deep_copy, lambda: matcher_of(lark_of(grammar(constraint)))


def derived(text: str, rules: Grammar) -> bool:
    """Whether the rules derive ``text``, as llama.cpp would: every place that a node can reach from a place, tried one by one."""

    @cache
    def ends(node: Node, at: int) -> frozenset[int]:
        if isinstance(node, Ref):
            return ends(rules.rules[node.name], at)
        if isinstance(node, Chars):
            here = at < len(text) and any(low <= ord(text[at]) <= high for low, high in node.ranges)
            return frozenset({at + 1} if here else ())
        if isinstance(node, Choice):
            return frozenset(end for option in node.options for end in ends(option, at))
        places = {at}
        if isinstance(node, Repeat):
            found = set() if node.least else {at}
            most = len(text) + node.least + 1 if node.most is None else node.most
            for count in range(1, most + 1):
                places = {end for place in places for end in ends(node.part, place)} - (
                    found if count > node.least else set()
                )
                found |= places if count >= node.least else set()
                if not places:
                    break
            return frozenset(found)
        for part in node.parts:
            places = {end for place in places for end in ends(part, place)}
        return frozenset(places)

    return len(text) in ends(Ref("root"), 0)


def accepted(constraint: Constraint, text: str) -> bool:
    """Whether torch and llama.cpp accept it, which is one thing."""
    found = takes(_compiled(constraint)[0](), text)
    assert found == derived(text, read_gbnf(grammar(constraint))), text
    return found


def schema(**keywords: Any) -> Constraint:
    return Constraint("json_schema", json.dumps({key.removesuffix("_"): value for key, value in keywords.items()}))


def walked(matcher: LLMatcher, chance: random.Random, most: int = 1200) -> str | None:
    """A text of random bytes that are allowed; what closes something is preferred. None when it got too long."""
    out: list[int] = []
    while not matcher.is_stopped() and len(out) < most:
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")[:257]).tolist()
        assert allowed and not matcher.is_error()
        if allowed[-1] == 256 and (len(allowed) == 1 or chance.random() < 0.5):
            return bytes(out).decode()
        letters = [byte for byte in allowed if byte != 256]
        closing = [byte for byte in letters if byte in b'"}],:']
        byte = chance.choice(closing if closing and chance.random() < 0.35 else letters)
        assert matcher.consume_token(byte)
        out.append(byte)
    return bytes(out).decode() if matcher.is_stopped() else None


@lru_cache(maxsize=1)
def random_schema() -> Callable[[random.Random], dict[str, Any]]:
    """The benchmark's generator."""
    path = Path(__file__).parents[2] / "benchmarks" / "_schemas.py"
    spec = importlib.util.spec_from_file_location("benchmarks_schemas", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.random_schema  # type: ignore[no-any-return]


def test_random_schemas_are_followed() -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    whole = 0
    for seed in range(40):
        chance = random.Random(seed)
        asked = random_schema()(chance)
        followed = Constraint("json_schema", json.dumps(asked))
        for matcher in _compiled(followed) if seed < 10 else _compiled(followed)[:1]:
            text = walked(matcher(), chance)
            if text is not None:
                jsonschema.Draft202012Validator(asked, format_checker=checker).validate(json.loads(text))
                whole += 1
    assert whole > 40


OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"type": "null"}},
    "required": ["b"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "asked, good, bad",
    [
        (schema(**OBJECT), ['{"a":1,"b":true}', '{ "b": false, "c": null }', '{"b":true}'], ['{"a":1}', '{"b":true,"a":1}', '{"b":true,"d":1}', "{}", '{"b":  true}']),
        (schema(**OBJECT, minProperties=2), ['{"a":1,"b":true}', '{"b":true,"c":null}'], ['{"b":true}']),
        (schema(**OBJECT, maxProperties=2), ['{"a":1,"b":true}', '{"b":true}'], ['{"a":1,"b":true,"c":null}']),
        (schema(type="object", additionalProperties={"type": "integer"}, maxProperties=2, minProperties=1), ['{"x":1}', '{"x":1,"y":2}'], ["{}", '{"x":1,"y":2,"z":3}', '{"x":"1"}']),
        (schema(type="object", properties={"a": {"type": "null"}}, required=["b"], additionalProperties={"type": "integer"}), ['{"a":null,"b":1,"c":2}', '{"b":1}'], ['{"a":1,"b":1}', '{"c":2}', '{"b":1,"b":2}', '{"b":1,"a":2}']),
        (schema(type="object", properties={"a\n\u0001": {"type": "null"}}, additionalProperties={"type": "integer"}), ['{"a\\n\\u0001":null}', '{"a\\n":1}', '{"":1}'], ['{"a\\n\\u0001":1}', '{"a\\u000a\\u0001":1}']),
        (schema(type="object", properties={"a1": {"minimum": 5}}, patternProperties={"^a": {"type": "integer"}, "1$": {"type": ["integer", "null"]}}, additionalProperties=False), ['{"a1":7,"a2":3,"b1":null}', '{"ab1":2}'], ['{"a1":3}', '{"a2":null}', '{"ab1":null}', '{"b":1}']),
        (schema(type="array", items={"type": "integer"}, minItems=1, maxItems=2), ["[1]", "[1, 2]"], ["[]", "[1,2,3]", "[true]"]),
        (schema(type="array", prefixItems=[{"type": "integer"}, {"type": "null"}], items=False), ["[]", "[1]", "[1,null]"], ["[null]", "[1,null,1]"]),
        (schema(type="array", prefixItems=[{"type": "integer"}], items={"type": "null"}, minItems=3), ["[1,null,null]"], ["[1,null]", "[1,null,1]"]),
        (schema(type="array", prefixItems=[True, False]), ["[]", "[1]"], ["[1,1]"]),
        (schema(enum=[1, "a", None, {"a": [1, 2]}, 1.5]), ["1", '"a"', "null", '{"a": [1, 2]}', "1.5"], ["2", "a", '"b"']),
        (schema(const='say "hi"\n🙂'), ['"say \\"hi\\"\\n🙂"'], ['"say"']),
        (schema(enum=[1, True, "x"], type="integer"), ["1"], ["true", '"x"']),
        (schema(enum=[3, 7], minimum=5), ["7"], ["3"]),
        (schema(anyOf=[{"type": "integer"}, {"type": "string", "maxLength": 2}], maximum=5), ["5", '"ab"'], ["6", '"abc"', "null"]),
        (schema(allOf=[{"type": "integer", "minimum": 3}, {"maximum": 5}, {"multipleOf": 2}]), ["4"], ["3", "5", "6"]),
        (schema(allOf=[{"multipleOf": 4}, {"multipleOf": 6}], type="integer", minimum=1, maximum=30), ["12", "24"], ["4", "6", "18"]),
        (schema(allOf=[{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"b": {"type": "null"}, "a": {"minimum": 2}}, "required": ["b"], "additionalProperties": False}]), ['{"a":2,"b":null}'], ['{"a":1,"b":null}', '{"a":2}', '{"a":2,"b":null,"c":1}']),
        (schema(allOf=[{"type": "array", "prefixItems": [{"minimum": 3}]}, {"items": {"type": "integer"}, "maxItems": 2}]), ["[]", "[3, 1]"], ["[1]", "[3,1,1]", "[3,null]"]),
        (schema(oneOf=[{"type": "string"}, {"type": "integer"}]), ['"a"', "1"], ["null", "1.5"]),
        (schema(oneOf=[{"properties": {"k": {"const": k}, k: {"type": "null"}}, "required": ["k", k], "type": "object", "additionalProperties": False} for k in "xy"]), ['{"k":"x","x":null}', '{"k":"y","y":null}'], ['{"k":"x","y":null}']),
        (schema(**{"$ref": "#/$defs/n/x~1y", "$defs": {"n": {"x/y": {"type": "integer"}}}, "maximum": 4}), ["4"], ["5", "null"]),
        (schema(type="object", properties={"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, required=["v"], additionalProperties=False), ['{"v":1,"next":{"v":2,"next":null}}', '{"v":1}'], ['{"v":1,"next":{"next":null}}']),
        (schema(type=["integer", "null"], minimum=3), ["3", "null"], ["2", "true"]),
        (schema(type="string", minLength=2, maxLength=3), ['"ab"', '"a\\n🙂"', '"\\\\\\""'], ['"a"', '"abcd"', '"a\n"']),
        (schema(type="string", pattern="^[a-z]+$", maxLength=3), ['"abc"'], ['"abcd"', '""', '"a1"']),
        (schema(type="string", pattern="a", minLength=2), ['"ab"', '"ca"', '"\\na"'], ['"a"', '"bc"']),
        (schema(type="string", pattern='^"\\\\\n$'), ['"\\"\\\\\\n"'], ['"\\"\\\\n"']),
        (schema(type="string", pattern="^[a-z-]+$", format="date"), [], ['"2024-01-01"', '"a"']),
        (schema(type="string", pattern="^2", format="date"), ['"2024-02-29"'], ['"1999-01-01"', '"2023-02-29"', '"2023-04-31"', '"2000-13-01"']),
        (schema(type="string", format="date-time"), ['"2000-02-29T23:59:59Z"', '"2024-01-01T00:00:00.5+01:00"'], ['"1900-02-29T00:00:00Z"', '"2024-01-01 00:00:00Z"', '"2024-01-01T24:00:00Z"']),
        (schema(minimum=4), ["4", '"x"', "[1]", "{}", "null", "true"], ["3"]),
        (Constraint("json_schema", "{}"), ["1", "null", '{"a":[1e5,-0.5]}'], ["nul"]),
        (schema(type="array", items=[{"type": "integer"}], additionalItems=False, **{"$schema": "http://json-schema.org/draft-07/schema#"}), ["[1]"], ["[1,1]"]),
        (schema(type="integer", minimum=3, exclusiveMinimum=True, maximum=5, **{"$schema": "http://json-schema.org/draft-04/schema#"}), ["4", "5"], ["3", "6"]),
    ],
    ids=lambda value: value.value[:70] if isinstance(value, Constraint) else "",
)  # fmt: skip
def test_what_follows_a_schema_is_accepted_and_nothing_else(asked: Constraint, good: list[str], bad: list[str]) -> None:
    if not good:
        with pytest.raises(InputError, match="no value follows it"):
            grammar(asked)
        return
    for text in good:
        assert accepted(asked, text), text
        value, told = json.loads(text), json.loads(asked.value)
        jsonschema.validators.validator_for(told, jsonschema.Draft202012Validator)(told).validate(value)
    for text in bad:
        assert not accepted(asked, text), text


NUMBERS = st.one_of(st.integers(-1200, 1200).map(Decimal), st.decimals(-20, 20, places=2), st.decimals(-2, 2, places=4))


@given(
    st.one_of(st.none(), NUMBERS), st.one_of(st.none(), NUMBERS), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from([None, None, Decimal(3), Decimal("0.5"), Decimal("0.03")]), st.lists(NUMBERS, min_size=1, max_size=6),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_numbers_are_those_within_the_bounds(
    least: Decimal | None,
    most: Decimal | None,
    above: bool,
    below: bool,
    whole: bool,
    step: Decimal | None,
    tried: list[Decimal],
) -> None:
    rules = Rules()
    rule = number(rules, least=least, most=most, above=above, below=below, whole=whole, multiple=step)
    near = [
        bound + shift
        for bound in (least, most)
        if bound is not None
        for shift in map(Decimal, ("0", "0.01", "-0.01", "1", "-1"))
    ]
    right = [
        value
        for value in (*tried, *near)
        if (least is None or (value > least if above else value >= least))
        and (most is None or (value < most if below else value <= most))
        and (not whole or value == value.to_integral_value())
        and (step is None or value % step == 0)
    ]
    if rule is None:
        assert not right
        return
    matcher = matcher_of(lark_of(rules.text(rule)))
    assert not matcher.is_error(), matcher.get_error()
    for value in {*tried, *near}:
        text = f"{value.normalize():f}" if value else "0"
        ids = list(text.encode())
        copy = matcher.deep_copy()
        found = copy.try_consume_tokens(ids) == len(ids) and copy.is_accepting()
        assert found == (value in right), text


@pytest.mark.parametrize(
    "value, named",
    [
        ({"not": {}}, "not at its top"),
        ({"type": "object", "properties": {"a": {"if": {}}}}, "if at /properties/a"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {}}, "contains"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"propertyNames": {}}, "propertyNames"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"type": "object", "minProperties": 2}, "minProperties 2 where names are free"),
        ({"$ref": "https://example.com/a.json"}, "nothing outside of the schema is read"),
        ({"$ref": "other.json"}, "nothing outside of the schema is read"),
        ({"$ref": "#/$defs/a"}, "leads nowhere"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "calls itself"),
        ({"$defs": {"a": {"$ref": "#/$defs/a", "minimum": 1}}, "$ref": "#/$defs/a"}, "holds itself beside other keywords"),
        ({"type": "string", "format": "iri"}, "format iri (held are date"),
        ({"type": "string", "pattern": "(?=a)"}, "looking ahead"),
        ({"type": "string", "pattern": "("}, "not a 'regex'"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "oneOf"),
        ({"type": "integer", "minimum": 10**17}, "minimum 100000000000000000"),
        ({"const": 2**53 + 1}, "2**53"),
        ({"multipleOf": 1e-9}, "multipleOf"),
        ({"enum": []}, "no value follows it"),
        ({"type": "object", "required": "a"}, "not a valid schema at required"),
        ({"properties": {"a": {"$id": "x"}}}, "$id inside"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "no value follows it"),
        ({"const": 1, "type": "string"}, "no value follows it"),
        ({"type": "array", "minItems": 5000}, "at most 2,000"),
        ({"type": "object", "patternProperties": {"a" * n: {} for n in range(1, 7)}}, "at most 4"),
        ({"allOf": [{"anyOf": [{"const": n} for n in range(60)]}, {"anyOf": [{"const": n} for n in range(60)]}]}, "more than 2,000 alternatives"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "never ends"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_cannot_be_held_is_refused_by_name(value: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=re.escape(named)):
        grammar(Constraint("json_schema", json.dumps(value)))


def test_lenient_schemas_leave_out_what_cannot_be_held() -> None:
    held = {
        "type": "object",
        "properties": {"a": {"type": "array", "uniqueItems": True}},
        "not": {},
        "x-guidance": {"lenient": True},
    }
    asked = Constraint("grammar", f"root ::= json\njson ::= %json {json.dumps(held)}")
    assert accepted(asked, '{"a":[1,1]}') and not accepted(asked, '{"a":1}')
    with pytest.raises(InputError, match="uniqueItems at /properties/a"):
        grammar(Constraint("json_schema", json.dumps(held)))


@pytest.mark.parametrize(
    "rule, good, bad",
    [
        ('%text "stop"', ["go", "", " sto", "[x"], ["stop", " {", "[ {", "a stop b"]),
        ('%until "aab"', ["aab", "x aaab"], ["aaba", "x", "{aab"]),
    ],
)
def test_free_texts(rule: str, good: list[str], bad: list[str]) -> None:
    asked = Constraint("grammar", f"root ::= inner\ninner ::= {rule}")
    for text in good:
        assert accepted(asked, text), text
    for text in bad:
        assert not accepted(asked, text), text


def test_choices_and_patterns() -> None:
    assert accepted(Constraint("choice", '["a\\"b", "", "你"]'), 'a"b')
    assert accepted(Constraint("choice", '["a\\"b", "", "你"]'), "")
    assert not accepted(Constraint("choice", '["a", "ab"]'), "b")
    assert accepted(Constraint("regex", r"^(\d{2}|x)+$"), "12x")
