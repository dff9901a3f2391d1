"""Constraints as grammars in GBNF, one for all engines: llama.cpp follows it with its own engine of grammars, torch through llguidance.

llama.cpp's translation of JSON schemas leaves out keywords that it does not know, llguidance's has bounds that are not held, and neither knows all that the
other does; so Luthier writes the grammar itself, and a form is the same wherever it is asked for.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from luthier.core.engine import Constraint
from luthier.core.errors import InputError
from luthier.models.gbnf_reader import ADDED, quoted, read_gbnf
from luthier.models.gbnf_rules import Rules, free_text
from luthier.models.gbnf_schema import SchemaRules
from luthier.models.json_schema import read_schema
from luthier.models.patterns import parse, to_gbnf
from luthier.models.string_form import StringForm

LONGEST = 200_000
"""Characters of a constraint."""
WRITTEN_RULES = 30_000
"""Rules that a constraint may come to."""
_LINE = re.compile(rf"^([A-Za-z0-9-]+)([ \t]*::=[ \t]*){ADDED}$", re.MULTILINE)


@lru_cache(maxsize=256)
def grammar(constraint: Constraint) -> str:
    """``constraint`` in GBNF with the start rule ``root``, as llama.cpp reads it.

    Raises InputError for one that cannot be read or held, UnsupportedError for one whose grammar would be too large; both say why.
    """
    text = _LINE.sub(_free, written(constraint))
    read_gbnf(text, WRITTEN_RULES)
    return text


def written(constraint: Constraint) -> str:
    """``constraint`` in GBNF, where ``%string``, ``%text`` and ``%until`` may stand for rules."""
    if len(constraint.value) > LONGEST:
        raise InputError(f"{named(constraint)} must be at most {LONGEST:,} characters; got {len(constraint.value):,}")
    try:
        return _written(constraint)
    except RecursionError as error:
        raise InputError(f"{named(constraint)} is nested too deeply") from error


def named(constraint: Constraint) -> str:
    """What a message calls the parameter."""
    return "json_schema" if constraint.kind == "json_schema" else f"constraint {constraint.kind}"


def choices(constraint: Constraint) -> list[str]:
    """The texts that a constraint of kind ``choice`` allows. Raises InputError unless it is a JSON list of texts."""
    try:
        texts = json.loads(constraint.value)
    except ValueError as error:
        raise InputError(
            f"constraint choice must be a JSON list of texts; got {constraint.value[:60]!r}: {error}"
        ) from error
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"constraint choice must be a JSON list of texts, at least one; got {constraint.value[:60]!r}")
    return list(dict.fromkeys(texts))


def mark_of(kind: str, value: str) -> str:
    """The mark of a rule ``%text`` or ``%until``. Raises InputError for what is none."""
    try:
        mark = json.loads(value)
    except ValueError:
        mark = None
    if not isinstance(mark, str) or (kind == "until" and not mark):
        raise InputError(f"constraint grammar: %{kind} needs a text between quotation marks; got {value[:60]}")
    return mark


def _written(constraint: Constraint) -> str:
    if constraint.kind == "regex":
        return f"root ::= {to_gbnf(parse(constraint.value))}"
    if constraint.kind == "choice":
        return f"root ::= {' | '.join(map(quoted, choices(constraint)))}"
    if constraint.kind == "grammar":
        read_gbnf(constraint.value)
        return _LINE.sub(_json, constraint.value)
    rules = Rules()
    value = constraint.value if constraint.kind == "json_schema" else '{"type": "object"}'
    return rules.text(_schema_rule(rules, value, lenient=False))


def _schema_rule(rules: Rules, value: str, *, lenient: bool) -> str:
    schema = read_schema(value, lenient=lenient)
    root = SchemaRules(rules, schema, lenient).rule(schema)
    if root is None:
        raise InputError("json_schema cannot be used: no value follows it")
    return root


def _json(line: re.Match[str]) -> str:
    """A rule ``%json`` written out; the others stay."""
    name, between, kind, value = line.groups()
    if kind != "json":
        return line.group()
    rules = Rules(f"{name}-")
    return f"{name}{between}{rules.text(_schema_rule(rules, value, lenient=_is_lenient(value)), head='')}"


def _is_lenient(value: str) -> bool:
    """Whether the schema of a ``%json`` rule may be held in part: tools that are not strict."""
    try:
        settings = json.loads(value).get("x-guidance")
    except (ValueError, AttributeError, RecursionError):
        return False  # the reader of the schema says what is wrong
    return isinstance(settings, dict) and settings.get("lenient") is True


def _free(line: re.Match[str]) -> str:
    """A rule ``%string``, ``%text`` or ``%until`` written out."""
    name, between, kind, value = line.groups()
    rules = Rules(f"{name}-")
    if kind == "string":
        body = StringForm.read(value).rule(rules)
        if body is None:
            raise InputError(f"constraint grammar: no string follows rule {name}")
    else:
        body = free_text(rules, mark_of(kind, value), until=kind == "until")
    return f"{name}{between}{rules.text(body, head='')}"
