"""Constraints in llguidance's own language: checked, and written so that what it accepts is what was asked for.

JSON has at most one space where JSON allows spaces: small models repeat them without end.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from llguidance import LLMatcher

from luthier.core.engine import Constraint
from luthier.core.errors import InputError
from luthier.models.gbnf import read_gbnf, to_lark
from luthier.models.json_schema import read_schema, rust_pattern
from luthier.models.patterns import Choice, literal, parse, to_regex

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

LONGEST = 200_000
"""Characters of a constraint. Compiling is bounded by llguidance's own counts; this bounds what is read before they count."""

_JSON: JsonCompileOptions = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_pattern": " ?",
    "coerce_one_of": False,
    "lenient": False,
    "json_allow_general_unicode_escapes": False,
}


def named(constraint: Constraint) -> str:
    """What a message calls the parameter."""
    return "json_schema" if constraint.kind == "json_schema" else f"constraint {constraint.kind}"


def guidance(constraint: Constraint) -> str:
    """``constraint`` as ``LLMatcher`` takes it. Raises InputError for what cannot be read; what llguidance refuses it says when it compiles."""
    if len(constraint.value) > LONGEST:
        raise InputError(f"{named(constraint)} must be at most {LONGEST:,} characters; got {len(constraint.value):,}")
    try:
        if constraint.kind == "json":
            return str(LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=_JSON))
        if constraint.kind == "json_schema":
            schema = read_schema(constraint.value, pattern=rust_pattern)
            return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON))
        if constraint.kind == "regex":
            return str(LLMatcher.grammar_from_regex(to_regex(parse(constraint.value))))
        if constraint.kind == "choice":
            return str(LLMatcher.grammar_from_regex(to_regex(Choice(tuple(map(literal, choices(constraint)))))))
        return str(LLMatcher.grammar_from_lark(to_lark(read_gbnf(constraint.value), _added)))
    except RecursionError as error:
        raise InputError(f"{named(constraint)} is nested too deeply") from error


def choices(constraint: Constraint) -> list[str]:
    """The texts that a constraint of kind ``choice`` allows. Raises InputError unless it is a JSON list of different texts."""
    try:
        texts = json.loads(constraint.value)
    except ValueError as error:
        raise InputError(
            f"constraint choice must be a JSON list of texts; got {constraint.value[:60]!r}: {error}"
        ) from error
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"constraint choice must be a JSON list of texts, at least one; got {constraint.value[:60]!r}")
    return list(dict.fromkeys(texts))


def _added(kind: str, value: str) -> tuple[str, str]:
    """The rules that tool calls add to GBNF, as options and body of a rule in Lark's language."""
    return ("", _json_rule(value)) if kind == "json" else _text_rule(value, ends=kind == "until")


def _json_rule(value: str) -> str:
    schema = read_schema(value, lenient=is_lenient(value), pattern=rust_pattern)
    return f"%json {json.dumps(schema | {'x-guidance': {**_JSON, 'lenient': is_lenient(value)}})}"


def is_lenient(value: str) -> bool:
    """Whether the schema of a ``%json`` rule may be held in part: tools that are not strict."""
    try:
        settings = json.loads(value).get("x-guidance")
    except (ValueError, AttributeError, RecursionError):
        return False  # the reader of the schema says what is wrong
    return isinstance(settings, dict) and settings.get("lenient") is True


def mark_of(value: str, *, ends: bool) -> str:
    """The mark of a rule ``%text`` or ``%until`` (``ends``). Raises InputError for what is none."""
    try:
        mark = json.loads(value)
    except ValueError:
        mark = None
    if not isinstance(mark, str) or (ends and not mark):
        raise InputError(f"constraint grammar: %text and %until need a text between quotation marks; got {value[:60]}")
    return mark


def _text_rule(value: str, *, ends: bool) -> tuple[str, str]:
    """Any text that does not begin as JSON does (an object or a list of them), nor holds the mark; or (``ends``) such a text and the mark."""
    mark = to_regex(literal(mark_of(value, ends=ends)))
    json_like = r"/\s*(\[\s*)?\{(?s:.*)/"
    if ends:
        return "[lazy]", f"/(?s:.*){mark}/ & ~{json_like}"
    return "", f"/(?s:.*)/ & ~{json_like}" + (f" & ~/(?s:.*){mark}(?s:.*)/" if mark != "(?:)" else "")
