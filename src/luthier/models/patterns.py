"""Regular expressions as trees, so that one pattern means the same to every engine.

A pattern is read by Python's own parser and written again as the ranges of characters that it is made of: for llguidance in the syntax of Rust's
regex crate, for llama.cpp in GBNF. What no automaton can do (looking around, repeating a group's text) is refused by name.

Classes are taken so that a text matches by Python's ``re`` and by JSON Schema's rules (ECMA-262) alike: ``\\d``, ``\\w`` and ``\\s`` are their ASCII
characters, and what ``\\D``, ``\\W`` and ``\\S`` leave out is left out by both.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from luthier.core.errors import InputError

LAST = sys.maxunicode
MOST_NODES = 5_000
"""Parts of a pattern; a bound on time and memory, not on what is useful."""

_parser: Any = importlib.import_module("re._parser")
_ops: Any = importlib.import_module("re._constants")

Ranges: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of ``ranges`` (sorted, apart, both ends included, without surrogates)."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Seq:
    """One part after the other."""

    parts: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the options."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """``part`` at least ``least`` times, at most ``most`` times (None: any number)."""

    part: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Ref:
    """What a grammar's rule ``name`` stands for. Patterns have none."""

    name: str


Node: TypeAlias = Chars | Seq | Choice | Repeat | Ref


def chars(*pairs: tuple[int, int]) -> Chars:
    """The characters of all ``pairs``, surrogates left out."""
    out: list[tuple[int, int]] = []
    for low, high in sorted((low, high) for low, high in pairs if low <= high):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    apart = [part for low, high in out for part in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high))]
    return Chars(tuple((low, high) for low, high in apart if low <= high))


def others(known: Chars) -> Chars:
    """Every character that is not one of ``known``."""
    edges = [-1, *(edge for pair in known.ranges for edge in pair), LAST + 1]
    return chars(*((low + 1, high - 1) for low, high in zip(edges[::2], edges[1::2], strict=True)))


ANY = chars((0, LAST))


def literal(text: str) -> Node:
    """Just ``text``."""
    return Seq(tuple(chars((ord(letter), ord(letter))) for letter in text))


def parse(pattern: str, *, search: bool = False) -> Node:
    """The texts that ``pattern`` matches as a whole, or (``search``) that hold a match somewhere. Raises InputError that names what cannot be used."""
    try:
        parsed = _parser.parse(pattern)
    except (re.error, OverflowError) as error:
        raise InputError(f"pattern {_short(pattern)} cannot be read: {error}") from error
    except RecursionError as error:
        raise InputError(f"pattern {_short(pattern)} is nested too deeply") from error
    reader = _Reader(pattern, parsed.state.flags)
    try:
        return reader.whole(list(parsed), search=search)
    except RecursionError as error:
        raise InputError(f"pattern {_short(pattern)} is nested too deeply") from error


class _Reader:
    """Turns what ``re`` parsed into nodes."""

    def __init__(self, pattern: str, flags: int) -> None:
        self._pattern, self._flags, self._nodes = pattern, flags, 0

    def whole(self, items: list[Any], *, search: bool) -> Node:
        """The pattern, its ends bound where it says so (or, without ``search``, always)."""
        options = []
        for branch in _branches(items):
            left, right = 0, len(branch)
            while left < right and branch[left][0] is _ops.AT and branch[left][1] in _BEGINNINGS:
                left += 1
            while right > left and branch[right - 1][0] is _ops.AT and branch[right - 1][1] in _ENDS:
                right -= 1
            parts = [self.node(item, self._flags) for item in branch[left:right]]
            before = [Repeat(ANY, 0, None)] if search and not left else []
            after = [Repeat(ANY, 0, None)] if search and right == len(branch) else []
            options.append(Seq((*before, *parts, *after)))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def node(self, item: tuple[Any, Any], flags: int) -> Node:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise InputError(f"pattern {_short(self._pattern)} has more than {MOST_NODES:,} parts")
        op, value = item
        if op is _ops.LITERAL:
            return self._set([(value, value)], flags)
        if op is _ops.NOT_LITERAL:
            return others(self._set([(value, value)], flags))
        if op is _ops.ANY:
            return ANY if flags & re.DOTALL else others(chars((10, 10)))
        if op is _ops.IN:
            return self._class(value, flags)
        if op is _ops.BRANCH:
            return Choice(tuple(self._seq(branch, flags) for branch in value[1]))
        if op is _ops.SUBPATTERN:
            _, added, removed, inner = value
            return self._seq(inner, (flags | added) & ~removed)
        if op in (_ops.MAX_REPEAT, _ops.MIN_REPEAT):
            least, most, inner = value
            return Repeat(self._seq(inner, flags), int(least), None if most is _ops.MAXREPEAT else int(most))
        raise InputError(
            f"pattern {_short(self._pattern)}: {_REFUSED.get(op, str(op).lower())} cannot be held while text is drawn"
        )

    def _seq(self, items: Iterable[Any], flags: int) -> Node:
        parts = tuple(self.node(item, flags) for item in items)
        return parts[0] if len(parts) == 1 else Seq(parts)

    def _class(self, items: Sequence[tuple[Any, Any]], flags: int) -> Chars:
        negated = bool(items) and items[0][0] is _ops.NEGATE
        pairs: list[tuple[int, int]] = []
        for op, value in items[1:] if negated else items:
            if op is _ops.LITERAL:
                pairs.append((value, value))
            elif op is _ops.RANGE:
                pairs.append(value)
            else:
                pairs += _category(value, wide=negated).ranges
        found = self._set(pairs, flags)
        return others(found) if negated else found

    def _set(self, pairs: list[tuple[int, int]], flags: int) -> Chars:
        if not flags & re.IGNORECASE:
            return chars(*pairs)
        both = list(pairs)
        for low, high in pairs:
            for code in range(low, min(high, low + 2_000) + 1):
                both += [(ord(c), ord(c)) for c in (chr(code).lower(), chr(code).upper()) if len(c) == 1]
        return chars(*both)


def _branches(items: list[Any]) -> Iterator[list[Any]]:
    """The alternatives at the top of a pattern; those of a group that is all of it, too."""
    if len(items) == 1 and items[0][0] is _ops.BRANCH:
        for branch in items[0][1][1]:
            yield from _branches(list(branch))
    elif len(items) == 1 and items[0][0] is _ops.SUBPATTERN and not items[0][1][1] and not items[0][1][2]:
        yield from _branches(list(items[0][1][3]))
    else:
        yield items


_BEGINNINGS = (_ops.AT_BEGINNING, _ops.AT_BEGINNING_STRING)
_ENDS = (_ops.AT_END, _ops.AT_END_STRING)
_REFUSED = {
    _ops.AT: "an anchor or a word boundary inside of it",
    _ops.ASSERT: "looking ahead or behind",
    _ops.ASSERT_NOT: "looking ahead or behind",
    _ops.GROUPREF: "a reference to a group",
    _ops.GROUPREF_EXISTS: "a condition on a group",
    _ops.ATOMIC_GROUP: "an atomic group",
    _ops.POSSESSIVE_REPEAT: "a possessive repetition",
}


def _category(name: Any, *, wide: bool) -> Chars:
    """A class as few characters as any of its meanings has, or (``wide``) as many."""
    kind = str(name).rpartition("_")[2].lower()
    if "NOT" in str(name):
        return others(_known(kind, wide=not wide))
    return _known(kind, wide=wide)


_NARROW = {
    "digit": ((48, 57),),
    "word": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "space": ((9, 13), (32, 32)),
}
_WIDE = {"digit": r"\d", "word": r"\w", "space": r"[\s\ufeff]"}


@lru_cache(maxsize=8)
def _known(kind: str, *, wide: bool) -> Chars:
    if not wide:
        return chars(*_NARROW[kind])
    told = re.compile(_WIDE[kind])
    return chars(*((code, code) for code in range(LAST + 1) if told.match(chr(code))))


def lengths(node: Node) -> tuple[int, int | None]:
    """The least and the most characters of a text that ``node`` matches (None: no end)."""
    if isinstance(node, Ref):
        return 0, None
    if isinstance(node, Chars):
        return 1, 1
    if isinstance(node, Repeat):
        least, most = lengths(node.part)
        return least * node.least, 0 if most == 0 else None if None in (most, node.most) else most * node.most  # type: ignore[operator]
    inner = [lengths(part) for part in (node.parts if isinstance(node, Seq) else node.options)]
    leasts, mosts = [pair[0] for pair in inner], [pair[1] for pair in inner]
    if isinstance(node, Seq):
        return sum(leasts), None if None in mosts else sum(most or 0 for most in mosts)
    return min(leasts), None if None in mosts else max(most or 0 for most in mosts)


def to_regex(node: Node) -> str:
    """``node`` in the syntax of Rust's regex crate. Raises InputError when nothing matches it."""
    if isinstance(node, Chars):
        if not node.ranges:
            raise InputError("a pattern must match something; got a class without a character")
        return f"[{''.join(_hex_range(low, high) for low, high in node.ranges)}]"
    if isinstance(node, Seq):
        return "".join(map(to_regex, node.parts)) or "(?:)"
    if isinstance(node, Choice):
        return f"(?:{'|'.join(map(to_regex, node.options))})"
    if isinstance(node, Ref):
        raise TypeError(f"a pattern has no rules; got {node.name}")
    most = "" if node.most is None else node.most
    return f"(?:{to_regex(node.part)}){{{node.least},{most}}}"


def _hex_range(low: int, high: int) -> str:
    return rf"\x{{{low:x}}}" if low == high else rf"\x{{{low:x}}}-\x{{{high:x}}}"


def to_gbnf(node: Node) -> str:
    """``node`` as an expression of GBNF. Raises InputError when nothing matches it."""
    if isinstance(node, Chars):
        if not node.ranges:
            raise InputError("a pattern must match something; got a class without a character")
        return f"[{''.join(_class_range(low, high) for low, high in node.ranges)}]"
    if isinstance(node, Seq):
        return " ".join(_in_sequence(part) for part in node.parts) or '""'
    if isinstance(node, Choice):
        return f"({' | '.join(map(to_gbnf, node.options))})"
    if isinstance(node, Ref):
        return node.name
    return repeated(_in_sequence(node.part), node.least, node.most)


def repeated(expression: str, least: int, most: int | None) -> str:
    """GBNF for ``expression`` so many times; a number that llama.cpp would find too high is made of smaller ones."""
    if most is None:
        return (
            f"{expression}*"
            if not least
            else f"{expression}+"
            if least == 1
            else f"{_times(expression, least, least)} {expression}*"
        )
    return '""' if not most else _times(expression, least, most)


def _times(expression: str, least: int, most: int) -> str:
    if most <= _MOST_TIMES:
        return f"{expression}{{{least},{most}}}" if most > 1 or least else f"{expression}?"
    whole, rest = divmod(least, _MOST_TIMES)
    fixed = [f"({expression}{{{_MOST_TIMES},{_MOST_TIMES}}}){{{whole},{whole}}}"] if whole else []
    fixed += [f"{expression}{{{rest},{rest}}}"] if rest else []
    return f"({' '.join([*fixed, _up_to(expression, most - least)])})"


def _up_to(expression: str, most: int) -> str:
    """None to ``most`` times, each number in one way only: llama.cpp follows all ways at once."""
    if most < _MOST_TIMES:
        return f"{expression}{{0,{most}}}" if most else '""'
    more = f"{expression}{{{_MOST_TIMES},{_MOST_TIMES}}} {_up_to(expression, most - _MOST_TIMES)}"
    return f"({more} | {expression}{{0,{_MOST_TIMES - 1}}})"


_MOST_TIMES = 500


def _in_sequence(node: Node) -> str:
    """An expression that something may stand beside, or a sign of repetition after."""
    simple = isinstance(node, Chars | Choice | Ref)
    return to_gbnf(node) if simple else f"({to_gbnf(node)})"


def _class_range(low: int, high: int) -> str:
    return _class_char(low) if low == high else f"{_class_char(low)}-{_class_char(high)}"


def _class_char(code: int) -> str:
    """A character inside of brackets. Only ASCII is ever escaped: readers of GBNF differ about other escapes."""
    letter = chr(code)
    return letter if code > 0x7F or letter.isalnum() else f"\\x{code:02X}"


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")
