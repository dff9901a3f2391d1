"""Constraints in llguidance's own language: checked, and written so that what it accepts is what was asked for.

JSON has at most one space where JSON allows spaces: small models repeat them without end.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from luthier.core.engine import Constraint
from luthier.core.errors import InputError

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
_ADDED = re.compile(r"^([A-Za-z][A-Za-z0-9-]*)[ \t]*::=[ \t]*%(json|text|until)[ \t]+(.+)$", re.MULTILINE)
_PLACE = "\ue000{}\ue001"
"""Private-use characters hold the place of added rules while GBNF becomes Lark."""


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
            schema = json_schema(constraint.value)
            return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON))
        if constraint.kind == "regex":
            return str(LLMatcher.grammar_from_regex(constraint.value))
        if constraint.kind == "choice":
            return str(LLMatcher.grammar_from_regex("|".join(map(_escaped, choices(constraint)))))
        return str(LLMatcher.grammar_from_lark(_lark(constraint.value)))
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


def json_schema(value: str) -> dict[str, Any]:
    """The schema in ``value``, checked against its own metaschema. Raises InputError that says where it is wrong."""
    import jsonschema

    try:
        schema = json.loads(value)
    except ValueError as error:
        raise InputError(f"json_schema is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise InputError(f"json_schema must be an object; got {value[:60]!r}")
    schema.pop("x-guidance", None)  # llguidance would take settings of its own from it
    try:
        jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(schema)
    except jsonschema.SchemaError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "its top"
        raise InputError(f"json_schema is not a valid schema at {where}: {error.message}") from error
    return schema


def _lark(grammar: str) -> str:
    """GBNF, with the rules ``%json``, ``%text`` and ``%until`` of tool calls (``luthier.data.tools``), in Lark's language."""
    added: list[tuple[str, str]] = []

    def hold(rule: re.Match[str]) -> str:
        name, kind, value = rule.groups()
        place = json.dumps(_PLACE.format(len(added)), ensure_ascii=False)
        added.append((kind, value))
        # A rule that calls itself stays a rule; others become patterns, which is what text is.
        return f"{name} ::= {place}" if kind == "text" else f"{name} ::= {place} {name} | {place}"

    held = _ADDED.sub(hold, grammar)
    try:
        lark = str(gbnf_to_lark(held))
    except RecursionError:
        raise
    except Exception as error:  # the converter raises bare Exceptions
        raise InputError(f"constraint grammar is not GBNF: {error}") from error
    for at, (kind, value) in enumerate(added):
        place = re.escape(json.dumps(_PLACE.format(at), ensure_ascii=False))
        body = _json_rule(value) if kind == "json" else _text_rule(value, ends=kind == "until")
        whole = rf"^(\w+): {place}.*(?:\n     \| .*)*$"
        found = re.search(whole, lark, re.MULTILINE)
        if found:  # a rule that nothing uses may be gone
            lazy = "[lazy]" if kind == "until" else ""
            lark = f"{lark[: found.start()]}{found[1]}{lazy}: {body}{lark[found.end() :]}"
    return lark


def _json_rule(value: str) -> str:
    schema = json_schema(value)
    settings = json.loads(value).get("x-guidance")
    lenient = isinstance(settings, dict) and settings.get("lenient") is True
    return f"%json {json.dumps(schema | {'x-guidance': {**_JSON, 'lenient': lenient}})}"


def _text_rule(value: str, *, ends: bool) -> str:
    """Any text that does not begin as JSON does (an object or a list of them), nor holds the mark; or (``ends``) such a text and the mark."""
    try:
        mark = json.loads(value)
    except ValueError as error:
        raise InputError(f"constraint grammar: %text needs a text between quotation marks; got {value[:60]}") from error
    if not isinstance(mark, str) or (ends and not mark):
        raise InputError(f"constraint grammar: %text and %until need a text between quotation marks; got {value[:60]}")
    escaped = _escaped(mark)
    json_like = r"/\s*(\[\s*)?\{(?s:.*)/"
    if ends:
        return f"/(?s:.*){escaped}/ & ~{json_like}"
    return f"/(?s:.*)/ & ~{json_like}" + (f" & ~/(?s:.*){escaped}(?s:.*)/" if mark else "")


def _escaped(text: str) -> str:
    """``text`` as a pattern that matches just it."""
    return "".join(map(_escaped_letter, text))


def _escaped_letter(letter: str) -> str:
    return letter if letter.isascii() and letter.isalnum() else rf"\x{{{ord(letter):x}}}"
