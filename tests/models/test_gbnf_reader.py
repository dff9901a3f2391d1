"""GBNF: what llguidance is told to accept is what a plain derivation of the rules accepts."""

from __future__ import annotations

import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.byte_matchers import lark_of, matcher_of, takes

from luthier.core.errors import InputError
from luthier.models.gbnf_reader import Grammar, quoted, read_gbnf
from luthier.models.patterns import Chars, Choice, Node, Ref, Repeat


def accepted(text: str, grammar: str) -> bool:
    return takes(matcher_of(lark_of(grammar)), text)


def derived(text: str, grammar: Grammar) -> bool:
    """Whether the rules derive ``text``: every place that a node can reach from a place, tried one by one."""

    @cache
    def ends(node: Node, at: int) -> frozenset[int]:
        if isinstance(node, Ref):
            return ends(grammar.rules[node.name], at)
        if isinstance(node, Chars):
            here = at < len(text) and any(low <= ord(text[at]) <= high for low, high in node.ranges)
            return frozenset({at + 1} if here else ())
        if isinstance(node, Choice):
            return frozenset(end for option in node.options for end in ends(option, at))
        if isinstance(node, Repeat):
            found, places = set(), {at}
            for count in range(len(text) + node.least + 1):
                found |= places if count >= node.least and (node.most is None or count <= node.most) else set()
                places = {end for place in places for end in ends(node.part, place)}
            return frozenset(found)
        places = {at}
        for part in node.parts:
            places = {end for place in places for end in ends(part, place)}
        return frozenset(places)

    return len(text) in ends(Ref("root"), 0)


TERMINALS = st.sampled_from(['"a"', '"b"', '"ab"', "[ab]", "[^a]", '""', "."])
EXPRESSIONS = st.recursive(
    TERMINALS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(" ".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda options: f"({' | '.join(options)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{1,}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
        st.just("other"),
    ),
    max_leaves=5,
)
TEXTS = st.text("abc", max_size=5)


@given(EXPRESSIONS, EXPRESSIONS.filter(lambda e: "other" not in e), TEXTS)
@settings(max_examples=500, deadline=None)
def test_grammars_without_recursion_are_held_exactly(root: str, other: str, text: str) -> None:
    grammar = f"root ::= {root}\nother ::= {other}"
    assert accepted(text, grammar) == derived(text, read_gbnf(grammar))


@given(EXPRESSIONS, st.sampled_from(['"(" root ")"', '"(" root? ")" other', '"[" (other "," root)* "]"']), TEXTS)
@settings(max_examples=300, deadline=None)
def test_what_is_accepted_of_grammars_with_recursion_is_derived(other: str, shape: str, text: str) -> None:
    grammar = f'root ::= {shape} | "a"\nother ::= {other.replace("other", "root")}'
    try:
        rules = read_gbnf(grammar)
    except InputError:
        return  # it calls itself on the left
    for sample in (text, f"({text})", f"((a){text})", f"[{text},a]"):
        if accepted(sample, grammar):
            assert derived(sample, rules)


JSON = r"""
# as llama.cpp's example, with comments and lines in groups
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize(
    "text, good",
    [
        ("{}", True),
        ('{"a": [1, {"b": -2.5e3}], "c":"\\u00e9 你"}', True),
        ('{"a": [1,], "b": 2}', False),
        ('{"a": tru}', False),
        ("[]", False),
    ],
)
def test_json_as_a_grammar(text: str, good: bool) -> None:
    assert accepted(text, JSON) == good
    assert derived(text, read_gbnf(JSON)) == good


def test_escapes_stand_for_characters() -> None:
    grammar = r'root ::= "\x41\u00e9\U0001F642\n\t\"\\" [\u4e00-\u9fff\]\-] .'
    assert accepted('Aé🙂\n\t"\\你\n', grammar.replace(r"\-", "-"))
    assert not accepted('Aé🙂\n\t"\\x\n', grammar.replace(r"\-", "-"))
    with pytest.raises(InputError, match="an escape"):
        read_gbnf(grammar)


@given(st.text(max_size=8))
@settings(max_examples=200, deadline=None)
def test_quoted_texts_are_read_back(text: str) -> None:
    assert accepted(text, f"root ::= {quoted(text)}")


@pytest.mark.parametrize(
    "grammar, named",
    [
        ("root", "::="),
        ("root = 1", "line 1 needs ::="),
        ('root ::= "a', "a closing quotation mark"),
        ("root ::= [a", "a closing bracket"),
        ('root ::= ("a"', "a closing parenthesis"),
        ('root ::= "a")', "the end of a line"),
        ('root ::= "a"{2,1}', "at least 2"),
        ('root ::= "a"{x}', "a count"),
        ("root ::= other", "no rule is called other"),
        ('other ::= "a"', "needs a rule root; got other"),
        ("", "needs a rule root"),
        ('root ::= root "a" | "b"', "root calls itself"),
        ('root ::= x? root "a"\nx ::= "x"', "root calls itself"),
        ('root ::= a\na ::= b*\nb ::= "" a', "calls itself"),
        ('root ::= <think>', "the end of a line"),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "nested too deeply"),
        ("\n".join(f'r{n} ::= "a"' for n in range(3000)), "at most 2,000 rules"),
    ],
    ids=lambda value: value[:24],
)  # fmt: skip
def test_what_is_wrong_is_said(grammar: str, named: str) -> None:
    with pytest.raises(InputError, match=re.escape(named)):
        read_gbnf(grammar)


def test_rules_that_would_be_too_large_written_out_stay_rules() -> None:
    doubled = "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(20))
    lark = lark_of(f'root ::= r0\n{doubled}\nr20 ::= "a"')
    assert len(lark) < 1_000_000
    assert matcher_of(lark).try_consume_tokens(list(b"aab")) == 2
