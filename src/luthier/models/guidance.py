"""Constraints in llguidance's own language, which torch's answers are held to."""

from __future__ import annotations

from llguidance import LLMatcher

from luthier.core.engine import Constraint
from luthier.core.errors import InputError
from luthier.models.gbnf import WRITTEN_RULES, mark_of, named, written
from luthier.models.gbnf_reader import read_gbnf, to_lark
from luthier.models.patterns import literal, to_regex
from luthier.models.string_form import StringForm

_JSON_LIKE = r"/\s*(\[\s*)?\{(?s:.*)/"


def guidance(constraint: Constraint) -> str:
    """``constraint`` as ``LLMatcher`` takes it. Raises InputError for one that cannot be read or held, UnsupportedError for one whose grammar would be
    too large."""
    text = written(constraint)
    try:
        return str(LLMatcher.grammar_from_lark(to_lark(read_gbnf(text, WRITTEN_RULES), _added)))
    except RecursionError as error:
        raise InputError(f"{named(constraint)} is nested too deeply") from error


def _added(kind: str, value: str) -> tuple[str, str]:
    """The rules ``%string`` and ``%text`` (no mark, no beginning of JSON) and ``%until`` (such a text and the mark), as options and body of a rule in Lark."""
    if kind == "string":
        return "", StringForm.read(value).lexeme()
    mark = to_regex(literal(mark_of(kind, value)))
    if kind == "until":
        return "[lazy]", f"/(?s:.*){mark}/ & ~{_JSON_LIKE}"
    return "", f"/(?s:.*)/ & ~{_JSON_LIKE}" + (f" & ~/(?s:.*){mark}(?s:.*)/" if mark != "(?:)" else "")
