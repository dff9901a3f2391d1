"""JSON in answers, and whether it fits a schema."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core import catalog
from luthier.core.errors import InputError
from luthier.scorers import _json, _pattern, json_schema, json_valid
from luthier.scorers._json import canonical, find_json, is_deeper, parts
from luthier.scorers._score import Answer, Target

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FENCED = 'Here it is:\n```json\n{"a": 1}\n```\nDone.'


@pytest.mark.parametrize(
    ("answer", "options", "value"),
    [
        ('{"茶": [1, 2.5, null, true]}', {}, 1.0),
        (" 3 ", {}, 1.0),
        ("", {}, 0.0),
        ("{'a': 1}", {}, 0.0),
        ('{"a": 1,}', {}, 0.0),
        ("NaN", {}, 0.0),
        ('{"a": Infinity}', {}, 0.0),
        (FENCED, {}, 1.0),
        (FENCED, {"where": "whole"}, 0.0),
        ("```\n[1]\n``` and ```\n[2]\n```", {}, 0.0),
        ("```\n[1]\n``` and ```\n[2]\n```", {"where": "anywhere"}, 1.0),
        ('It is {"a": 1}, I think.', {}, 0.0),
        ('It is {"a": 1}, I think.', {"where": "anywhere"}, 1.0),
        ("It is {a}, I think.", {"where": "anywhere"}, 0.0),
        ("[1]", {"type": "object"}, 0.0),
        ("[1]", {"type": "array"}, 1.0),
        ('{"a": 1}', {"type": "object"}, 1.0),
        ("[" * 100_000, {}, 0.0),
        ("[" * 100_000, {"where": "anywhere"}, 0.0),
        ('{"a": ' * 20_000, {"where": "anywhere"}, 0.0),
        ("9" * 100_000, {}, 0.0),
    ],
)
def test_validity(answer: str, options: dict[str, Any], value: float) -> None:
    start = time.process_time()
    found = json_valid.score(Answer(answer), Target(""), json_valid.Config(**options))
    assert found.value == value
    assert value or found.detail["reason"]
    assert time.process_time() - start < 3.0


@given(VALUES)
def test_what_is_written_is_read(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert find_json(text, "whole") == value
    assert find_json(f"so:\n```json\n{text}\n```", "fenced") == value or "```" in text
    if isinstance(value, dict | list):
        assert next(parts(f"so: {text} it is")) == value
        assert list(parts(f"{text}\n{text}")) == [value, value]


@given(
    st.text(alphabet=st.sampled_from(list('{}[]":,0123456789.eE+-truefalsn\\` \njson'))),
    st.sampled_from(["whole", "fenced", "anywhere"]),
)
def test_anything_is_valid_or_not(text: str, where: str) -> None:
    found = json_valid.score(Answer(text), Target(""), json_valid.Config.model_validate({"where": where}))
    assert found.value in (0.0, 1.0)
    if where == "whole":
        try:
            json.loads(text, parse_constant=_json._no_constant)
            expected = 1.0
        except ValueError:
            expected = 0.0
        assert found.value == expected


@given(VALUES)
def test_equal_values_have_one_text(value: Any) -> None:
    assert canonical(value) == canonical(json.loads(json.dumps(value)))
    if isinstance(value, dict):
        assert canonical(value) == canonical(dict(reversed(value.items())))


def test_what_is_equal() -> None:
    assert canonical({"a": 1, "b": 2.0}) == canonical({"b": 2, "a": 1.0})
    assert canonical([True]) != canonical([1])
    assert canonical("1") != canonical(1)
    deep: list[Any] = []
    for _ in range(150):
        deep = [deep]
    assert is_deeper(deep, 100)
    assert not is_deeper([[1]], 2)
    with pytest.raises(ValueError, match="deep"):
        canonical(deep)


ORDER = {
    "type": "object",
    "properties": {"id": {"type": "string", "pattern": "^[A-Z]{2}$"}, "数量": {"type": "integer", "minimum": 1}},
    "required": ["id"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("answer", "value", "problem"),
    [
        ('{"id": "AB", "数量": 3}', 1.0, ""),
        ('```json\n{"id": "AB"}\n```', 1.0, ""),
        ('{"数量": 3}', 0.0, "'id' is a required property"),
        ('{"id": "AB", "数量": 0}', 0.0, "0 is less than the minimum of 1"),
        ('{"id": "ABC"}', 0.0, "$.id: 'ABC' does not match"),
        ('{"id": "AB", "more": 1}', 0.0, "Additional properties"),
        ("[]", 0.0, "is not of type 'object'"),
        ("AB", 0.0, "not JSON"),
        ("[" * 300 + "]" * 300, 0.0, "deep"),
    ],
)
def test_a_schema(answer: str, value: float, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "order.schema.json"
    file.write_text(json.dumps(ORDER), encoding="utf-8")
    in_task, in_file, in_row = (
        json_schema.Config.model_validate({"against": against}) for against in (ORDER, str(file), None)
    )
    for config, meta in (
        (in_task, {}),
        (in_file, {}),
        (in_row, {"schema": ORDER}),
        (in_row, {"schema": json.dumps(ORDER)}),
    ):
        found = json_schema.score(Answer(answer), Target("", meta=meta), config)
        assert found.value == value
        assert problem in " ".join(found.detail.get("problems", []))


def test_the_file_is_read_into_the_task(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"type": "array"}')
    config = json_schema.Config.model_validate({"against": str(file)})
    assert config.model_dump(mode="json", exclude_unset=True) == {"against": {"type": "array"}}


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("nowhere.json", "No such file"),
        ({"type": "objekt"}, "not a JSON Schema"),
        ([1], "against"),
        ({"pattern": 3}, "not a JSON Schema"),
    ],
)
def test_a_bad_schema_is_refused_when_the_task_is_read(against: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        catalog.load("scorers", "json_schema").configure({"against": against})


@pytest.mark.parametrize(
    "schema", [None, "{", {"type": "objekt"}, 3, {"$ref": "https://example.org/a.json"}, {"$ref": "#/$defs/lost"}]
)
def test_a_row_without_a_usable_schema_is_unscored(schema: Any) -> None:
    found = json_schema.score(Answer("{}"), Target("", meta={"schema": schema}), json_schema.Config())
    assert found.value is None
    assert found.detail["reason"]


def test_a_pattern_without_end_is_unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pattern, "TIMEOUT_S", 0.05)
    config = json_schema.Config(against={"pattern": "(x+x+)+y"})
    assert json_schema.score(Answer(json.dumps("x" * 5000)), Target(""), config).value is None
