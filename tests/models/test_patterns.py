"""Patterns, against Python's ``re`` and llguidance's reading of what was written for both engines."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from tests.models.byte_matchers import lark_of, matcher_of, takes

from luthier.core.errors import InputError
from luthier.models.patterns import Node, lengths, parse, to_gbnf, to_regex

LETTERS = "ab0_ \n-é你\u2028🙂٣A"


def accepted(grammar: str, text: str) -> bool:
    return takes(matcher_of(grammar), text)


def both(node: Node, text: str) -> list[bool]:
    """Whether the text is accepted, as a Rust regex and as GBNF."""
    return [
        accepted(LLMatcher.grammar_from_regex(to_regex(node)), text),
        accepted(lark_of(f"root ::= {to_gbnf(node)}"), text),
    ]


CLASSES = st.sampled_from(
    ["[ab]", "[^a]", r"\d", r"\w", r"\s", r"[^\s]", r"[\w-]", r"[^\d_]", "[0-9]", "[a-é]", "[你🙂]", "."]
)
ATOMS = st.one_of(st.sampled_from([re.escape(letter) for letter in LETTERS]), CLASSES)
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda options: f"({'|'.join(options)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}?", "*?"])).map(
            lambda p: f"(?:{p[0]}){p[1]}"
        ),
        inner.map(lambda part: f"(?i:{part})"),
    ),
    max_leaves=6,
)
TEXTS = st.text(st.sampled_from(LETTERS), max_size=6)


@given(PATTERNS, TEXTS)
@settings(max_examples=500, deadline=None)
def test_what_is_accepted_matches_and_nothing_in_ascii_is_lost(pattern: str, text: str) -> None:
    found = both(parse(pattern), text)
    assert found[0] == found[1]
    if found[0]:
        assert re.fullmatch(pattern, text)
    elif text.isascii():
        assert not re.fullmatch(pattern, text, re.ASCII)


@given(PATTERNS.flatmap(lambda p: st.tuples(st.just(p), st.from_regex(re.compile(p, re.ASCII), fullmatch=True))))
@settings(max_examples=300, deadline=None)
def test_what_python_finds_for_a_pattern_is_accepted(case: tuple[str, str]) -> None:
    pattern, text = case
    assume(not any("\ud800" <= letter <= "\udfff" or "\x1c" <= letter <= "\x1f" for letter in text))
    # classes of what something is not leave out what any meaning of it leaves out, so letters beyond ASCII may be refused
    assume(text.isascii() or not re.search(r"\[\^\\|\(\?i", pattern))
    assert both(parse(pattern), text) == [True, True]


@given(PATTERNS, st.sampled_from(["{}", "^{}", "{}$", "^{}$", "^({})|b$"]), TEXTS)
@settings(max_examples=300, deadline=None)
def test_searching_finds_what_re_finds(pattern: str, shape: str, text: str) -> None:
    whole = shape.format(pattern)
    found = both(parse(whole, search=True), text)
    assert found[0] == found[1]
    if found[0]:
        assert re.search(whole, text)
    elif text.isascii() and not text.endswith("\n"):  # re's $ also stands before a last line's end
        assert not re.search(whole, text, re.ASCII)


@given(PATTERNS, TEXTS)
@settings(max_examples=300, deadline=None)
def test_lengths_hold(pattern: str, text: str) -> None:
    node = parse(pattern)
    least, most = lengths(node)
    if both(node, text)[0]:
        assert least <= len(text) and (most is None or len(text) <= most)


@pytest.mark.parametrize("count", [0, 1, 2, 499, 500, 501, 1203])
@pytest.mark.parametrize("least", [0, 1, 501])
def test_high_counts_are_made_of_smaller_ones(count: int, least: int) -> None:
    if least > count:
        return
    node = parse(f"a{{{least},{count}}}")
    for size in {0, least - 1, least, count - 1, count, count + 1}:
        if size >= 0:
            assert both(node, "a" * size) == [least <= size <= count] * 2


@pytest.mark.parametrize(
    "pattern, named",
    [
        ("(?=a)b", "looking ahead"),
        ("a(?!b)", "looking ahead"),
        ("(?<=a)b", "looking ahead or behind"),
        (r"(a)\1", "reference"),
        (r"(a)?(?(1)b|c)", "condition"),
        (r"a\bb", "word boundary"),
        ("a^b", "anchor"),
        ("(?>a)b", "atomic"),
        ("a*+b", "possessive"),
        ("a(", "cannot be read"),
        (r"\p{L}", "cannot be read"),
        ("(" * 3000 + "a" + ")" * 3000, "nested too deeply"),
        ("a" * 6000, "more than 5,000 parts"),
        ("a{99999999999999}", "cannot be read"),
    ],
    ids=lambda value: value[:20],
)
def test_what_cannot_be_held_is_refused_by_name(pattern: str, named: str) -> None:
    with pytest.raises(InputError, match=re.escape(named)):
        parse(pattern)


def test_a_class_without_characters_is_refused() -> None:
    with pytest.raises(InputError, match="must match something"):
        to_regex(parse(r"[^\w\W]"))
