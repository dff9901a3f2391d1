"""Texts that have a form: constrained answers and the arguments of tool calls, for the fake engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jsonschema
import regex

from luthier.core.engine import Constraint
from luthier.models.gbnf import WRITTEN_RULES, choices, grammar
from luthier.models.gbnf_reader import read_gbnf
from luthier.models.patterns import Chars, Choice, Node, Ref, Repeat, Seq

_LETTERS = "a0 "


def in_form(constraint: Constraint, told: str, pick: int) -> str:
    """``told`` when it is what ``constraint`` asks for (of a grammar that is not known); else of choices the one that ``pick`` chooses, of all
    other texts the shortest.

    Raises InputError for a constraint that cannot be read, UnsupportedError for one that is too large.
    """
    text = shortest(constraint)  # reads it
    if constraint.kind == "choice":
        texts = choices(constraint)
        return told if told in texts else texts[pick % len(texts)]
    if constraint.kind == "regex":
        return told if regex.fullmatch(constraint.value, told) else text
    if constraint.kind == "grammar":
        return text
    schema = json.loads(constraint.value) if constraint.kind == "json_schema" else {"type": "object"}
    return told if _is_valid(told, schema) else text


def arguments_for(parameters: str) -> str:
    """The shortest arguments that are valid for a tool's parameters. Raises InputError for a schema that cannot be read."""
    return shortest(Constraint("json_schema", parameters))


@lru_cache(maxsize=256)
def shortest(constraint: Constraint) -> str:
    """The shortest text that has a form, or one of them."""
    rules = read_gbnf(grammar(constraint), WRITTEN_RULES).rules
    known: dict[str, str] = {}
    found = True
    while found:
        found = False
        for name, node in rules.items():
            text = _shortest(node, known)
            if text is not None and (name not in known or len(text) < len(known[name])):
                known[name], found = text, True
    return known["root"]


def _shortest(node: Node, known: Mapping[str, str]) -> str | None:
    """The shortest text of a node, by what is known of the rules so far."""
    if isinstance(node, Ref):
        return known.get(node.name)
    if isinstance(node, Chars):
        return next(
            (each for each in _LETTERS if any(a <= ord(each) <= b for a, b in node.ranges)), chr(node.ranges[0][0])
        )
    if isinstance(node, Choice):
        texts = [text for text in (_shortest(option, known) for option in node.options) if text is not None]
        return min(texts, key=len, default=None)
    if isinstance(node, Repeat):
        part = _shortest(node.part, known) if node.least else ""
        return None if part is None else part * node.least
    assert isinstance(node, Seq)
    parts = [_shortest(part, known) for part in node.parts]
    return None if None in parts else "".join(part for part in parts if part is not None)


def _is_valid(text: str, schema: Any) -> bool:
    try:
        return bool(jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)))
    except ValueError:
        return False
