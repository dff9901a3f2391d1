"""Form: an answer must be JSON, and fit a schema (JSON Schema 2020-12). With the action ``retry`` the model is told what is wrong.

Without ``schema`` it is the one that the request itself asks for (``response_format``), if it does. Fences of Markdown around the JSON are let through with
``fenced``. An answer that is only tool calls has no form to check.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import InputError
from luthier.gateway.guardrails._contract import Context, Finding, Models, whole

ON = ("output",)
ACTIONS = ("retry", "block", "flag", "hand_over")
MOST_PROBLEMS = 5
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)


class Config(EntryConfig):
    """``schema``: a JSON schema; left out, that of the request. ``fenced``: JSON inside of a code fence is JSON, too."""

    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    fenced: bool = False


def prepare(config: Config, models: Models) -> Any:
    """The validator. Raises InputError for a schema that is none."""
    return None if config.json_schema is None else _validator(config.json_schema)


def check(text: str, config: Config, context: Context) -> list[Finding]:
    """One finding over the whole answer that says which places are wrong, not what stands there."""
    if not text.strip():
        return []
    validator = context.state
    if validator is None:
        constraint = context.constraint
        if constraint is None or constraint.kind not in ("json", "json_schema"):
            return []
        validator = _validator(json.loads(constraint.value)) if constraint.kind == "json_schema" else None
    problems = _problems(context.restored(text), validator, config.fenced)
    return whole("schema", text, 1.0, "; ".join(problems)) if problems else []


def _validator(schema: dict[str, Any]) -> Any:
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise InputError(f"schema is not a JSON schema: {error.message}") from error
    return kind(schema)


def _problems(text: str, validator: Any, fenced: bool) -> list[str]:
    inner = _FENCE.fullmatch(text) if fenced else None
    try:
        document = json.loads(inner[1] if inner is not None else text)
    except (ValueError, RecursionError) as error:
        place = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        return [f"the answer is not JSON{place}"]
    if validator is None:
        return [] if isinstance(document, dict) else ["the answer is not a JSON object"]
    out = []
    for problem in validator.iter_errors(document):
        out.append(f"at {problem.json_path}: {_said(problem)}")
        if len(out) == MOST_PROBLEMS:
            break
    return out


def _said(problem: Any) -> str:
    """What is wrong in words of the schema: the answer's own values are not repeated."""
    wanted = json.dumps(problem.validator_value, ensure_ascii=False)
    if problem.validator == "required":
        missing = [name for name in problem.validator_value if name not in problem.instance]
        return f"missing: {', '.join(missing)}"
    if problem.validator == "additionalProperties":
        return "there are keys that are not allowed"
    return f"{problem.validator} must be {wanted if len(wanted) <= 200 else 'as the schema says'}"
