"""Whether the answer is JSON that fits a JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import field_validator

from luthier.core.catalog import EntryConfig
from luthier.scorers._json import MOST_LEVELS, Where, canonical, find_json, is_deeper, read_json
from luthier.scorers._pattern import PatternTimeoutError, is_found
from luthier.scorers._score import Answer, Score, Target

_MOST_PROBLEMS = 5


class Config(EntryConfig):
    """``against`` is the schema itself, or the JSON file that holds it (it is read once, so the task keeps the schema, not the file's name);
    left out, each row brings its own under ``key`` (an object, or JSON text). ``where`` is as in ``json_valid``. References to other
    files or addresses are never followed.
    """

    against: dict[str, Any] | bool | None = None
    key: str = "schema"
    where: Where = "fenced"

    @field_validator("against", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return read_json(Path(value).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"must be a schema or a JSON file that holds one: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"the file is not JSON: {error}") from error

    @field_validator("against")
    @classmethod
    def _is_a_schema(cls, value: Any) -> Any:
        problem = None if value is None else _fault(canonical(value))
        if problem:
            raise ValueError(f"is not a JSON Schema: {problem}")
        return value


def needs_target(config: Config) -> bool:
    """The schema is an option, or a field of the row."""
    return False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the answer is JSON and fits, else 0.0 with the first problems and where they are; None when there is no usable schema."""
    schema = _schema_of(target, config)
    if isinstance(schema, Score):
        return schema
    try:
        value = find_json(answer.text, config.where)
    except ValueError as error:
        return Score(0.0, {"problems": [f"not JSON: {error}"]})
    if is_deeper(value, MOST_LEVELS):
        return Score(0.0, {"problems": [f"nested more than {MOST_LEVELS} deep"]})
    try:
        problems = _problems(schema, value)
    except _UnusableError as error:
        return Score(None, {"reason": str(error)})
    return Score(0.0, {"problems": problems}) if problems else Score(1.0)


class _UnusableError(Exception):
    """The schema, not the answer, is at fault."""


def _schema_of(target: Target, config: Config) -> str | Score:
    """The schema as canonical text, or the score that says why there is none."""
    schema: Any = config.against if config.against is not None else target.meta.get(config.key)
    if schema is None:
        return Score(None, {"reason": f"no schema: neither 'against' nor {config.key!r} in the row"})
    if isinstance(schema, str):
        try:
            schema = read_json(schema)
        except ValueError as error:
            return Score(None, {"reason": f"the row's schema is not JSON: {error}"})
    try:
        text = canonical(schema)
    except ValueError as error:
        return Score(None, {"reason": f"the row's schema cannot be used: {error}"})
    fault = _fault(text)
    return Score(None, {"reason": f"the row's schema is not a JSON Schema: {fault}"}) if fault else text


@lru_cache(maxsize=256)
def _fault(schema: str) -> str:
    """What is wrong with a schema, or nothing."""
    from jsonschema.exceptions import SchemaError

    try:
        value = read_json(schema)
        if not isinstance(value, dict | bool):
            return f"it is of type {type(value).__name__}, not an object"
        _class_for(value).check_schema(value)
    except SchemaError as error:
        return f"{error.json_path}: {error.message}"
    return ""


def _class_for(schema: Any) -> Any:
    from jsonschema.validators import Draft202012Validator, validator_for

    return validator_for(schema, default=Draft202012Validator)


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    """A validator that fetches nothing and stops patterns that never end."""
    from jsonschema import validators
    from referencing import Registry

    value = read_json(schema)
    extend: Any = validators.extend
    bounded = extend(_class_for(value), {"pattern": _pattern})
    return bounded(value, registry=Registry())


def _pattern(validator: Any, pattern: str, instance: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError

    if validator.is_type(instance, "string") and not is_found(pattern, instance):
        yield ValidationError(f"{instance[:80]!r} does not match {pattern!r}")


def _problems(schema: str, value: Any) -> list[str]:
    from jsonschema.exceptions import best_match, relevance
    from referencing.exceptions import Unresolvable

    try:
        found = sorted(_validator(schema).iter_errors(value), key=relevance, reverse=True)
    except Unresolvable as error:
        raise _UnusableError(f"the schema refers to what is not in it: {error}") from error
    except (PatternTimeoutError, RecursionError, ValueError) as error:
        raise _UnusableError(f"the schema cannot be applied: {error}") from error
    told = [best_match([error]) or error for error in found[:_MOST_PROBLEMS]]
    return [f"{error.json_path}: {error.message[:200]}" for error in told]
