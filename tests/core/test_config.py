from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from luthier.core.config import Document, apply_overrides, from_mapping, read_yaml, validate
from luthier.core.errors import InputError


class Method(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    rank: int = Field(default=8, ge=1)


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    method: Method
    epochs: float = 1.0
    kind: Literal["sft", "classify"] = "sft"


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_come_with_the_line_they_are_on(tmp_path):
    document = read_yaml(
        write(tmp_path, "# a run\nmethod:\n  name: lora\n  rank: 4\nlabels:\n- a\n- b\nepochs: 2e-4\n")
    )
    assert document.values == {"method": {"name": "lora", "rank": 4}, "labels": ["a", "b"], "epochs": 0.0002}
    assert document.origins["method.rank"] == "run.yaml:4" and document.origins["labels.1"] == "run.yaml:7"
    assert document.origins["epochs"] == "run.yaml:8"


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("2E5", 2e5), ("-3e2", -300.0), ("1.5e-3", 1.5e-3), ("1e", "1e"), ("e5", "e5")]
)
def test_numbers_in_e_notation_are_numbers(tmp_path, text, value):
    assert read_yaml(write(tmp_path, f"x: {text}\n")).values["x"] == value


def test_files_are_relative_to_the_document(tmp_path):
    document = read_yaml(write(tmp_path, "a: b\n"))
    assert document.path("data/x.jsonl") == tmp_path / "data" / "x.jsonl"
    assert str(document.path("/abs/x")) == "/abs/x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\n", r"run\.yaml:\d: not valid YAML"),
        ("a: 1\na: 2\n", r"run\.yaml:2: key 'a' occurs twice"),
        ("x:\n  a: 1\n  a: 2\n", r"run\.yaml:3: key 'a' occurs twice"),
        ("l:\n- {k: 1, k: 2}\n", r"run\.yaml:2: key 'k' occurs twice"),
        ("a: 1\n[b, c]: 2\n", r"run\.yaml:2: a key must be a word"),
        ("- a\n- b\n", "got list"),
        ("just text\n", "got str"),
        ("", "got NoneType"),
        ("a: !!python/object/apply:os.system [id]\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_mapping_are_refused_with_their_line(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        read_yaml(write(tmp_path, text))


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no such file: .*none\.yaml"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read"):
        read_yaml(tmp_path / "bytes.yaml")
    with pytest.raises(InputError, match="cannot read"):
        read_yaml(tmp_path)


def test_overrides_set_nested_values_and_their_origin(tmp_path):
    path = write(tmp_path, "method: {name: lora, rank: 4}\n")
    document = read_yaml(
        path, ["method.rank=32", "train.epochs=2e0", "data.path=a=b.jsonl", "labels=[x, y]", "flag=true", "none="]
    )
    assert document.values == {
        "method": {"name": "lora", "rank": 32},
        "train": {"epochs": 2.0},
        "data": {"path": "a=b.jsonl"},
        "labels": ["x", "y"],
        "flag": True,
        "none": None,
    }
    assert document.origins["method.rank"] == "command line" and document.origins["method.name"] == "run.yaml:1"


def test_a_short_form_grows_into_a_section():
    document = from_mapping({"method": "lora"}, ["method.rank=4"])
    assert document.values == {"method": {"name": "lora", "rank": 4}}


@pytest.mark.parametrize("override", ["rank", "=4", "a..b=1", ".a=1", "a.=1", "", "x=[1"])
def test_malformed_overrides_are_refused(override):
    with pytest.raises(InputError):
        apply_overrides(Document(), [override])


def test_an_override_below_a_value_is_refused():
    with pytest.raises(InputError, match="epochs is not a section, it is 3"):
        from_mapping({"epochs": 3}, ["epochs.x=1"])


def test_an_override_reaches_into_a_list():
    document = from_mapping({"data": {"sources": [{"path": "a"}, {"path": "b"}]}}, ["data.sources.1.weight=3"])
    assert document.values == {"data": {"sources": [{"path": "a"}, {"path": "b", "weight": 3}]}}
    assert document.origins["data.sources.1.weight"] == "command line"
    for key in ("data.sources.2.weight=1", "data.sources.x.weight=1", "data.sources.-1=1"):
        with pytest.raises(InputError, match="no place in a list of 2"):
            from_mapping({"data": {"sources": [{}, {}]}}, [key])


def test_the_callers_mapping_is_not_changed():
    mine = {"a": {"b": 1}}
    document = from_mapping(mine, ["a.b=2"])
    assert mine == {"a": {"b": 1}} and document.values == {"a": {"b": 2}}
    assert from_mapping(mine).origins == {"a": "python", "a.b": "python"}


def test_validation_names_key_allowed_and_given_value_and_origin():
    document = from_mapping({"method": {"name": "lora", "rank": 0}, "epochs": "many", "kind": "dpo"})
    document.origins["method.rank"] = "run.yaml:4"
    with pytest.raises(InputError) as raised:
        validate(Config, document.values, where="run", origins=document.origins)
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    assert any(
        "method.rank" in line and "greater than or equal to 1" in line and "got 0" in line and "run.yaml:4" in line
        for line in lines
    )
    assert any("epochs" in line and "'many'" in line for line in lines)
    assert any("kind" in line and "'sft' or 'classify'" in line for line in lines)


def test_an_unknown_key_suggests_the_near_one_of_its_section():
    with pytest.raises(InputError, match=r"unknown key 'method.rnak'.*Did you mean 'rank'"):
        validate(Config, {"method": {"name": "lora", "rnak": 4}})
    with pytest.raises(InputError, match=r"unknown key 'metod'.*Did you mean 'method'"):
        validate(Config, {"method": {"name": "x"}, "metod": 1})
    with pytest.raises(InputError, match=r"method.name is required"):
        validate(Config, {"method": {}})


def test_good_values_become_the_model():
    assert validate(Config, {"method": {"name": "lora"}}).method.rank == 8


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,6}", fullmatch=True),
        st.integers() | st.booleans() | st.lists(st.integers(), max_size=3),
        max_size=5,
    )
)
def test_any_plain_value_survives_an_override(values):
    import json

    document = Document()
    apply_overrides(document, [f"section.{key}={json.dumps(value)}" for key, value in values.items()])
    assert document.values.get("section", {}) == values


def test_files_are_seen_from_the_document_and_a_name_on_the_hub_from_nowhere(tmp_path):
    document = read_yaml(write(tmp_path, "a: 1\n"))
    assert document.path("rows.jsonl") == tmp_path / "rows.jsonl"
    assert document.path(str(tmp_path / "rows.jsonl")) == tmp_path / "rows.jsonl"
    assert str(document.path("hub:org/name:test")) == "hub:org/name:test"
