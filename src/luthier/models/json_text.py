"""Strings as they stand in JSON, as patterns: each character is written in one way only, so that a text has one form.

Quotation marks, backslashes and the control characters that have one get their short escape, other control characters ``\\u00xx``; all else stands
for itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from luthier.core.errors import InputError, UnsupportedError
from luthier.models.patterns import ANY, Chars, Choice, Node, Ref, Repeat, Seq, chars, literal, others

QUOTE = literal('"')
_PLAIN = others(chars((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F)))
_ESCAPED = (*range(0x20), 0x22, 0x5C, 0x7F)
_SHORT = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
MOST_BEGINNINGS = 20_000


def written(text: str) -> str:
    """``text`` between the quotation marks of a JSON string."""
    return "".join(_letter(letter) for letter in text)


def encoded(node: Node) -> Node:
    """A pattern of texts, as a pattern of what stands in a JSON string for them. Raises InputError for a class without a character."""
    if isinstance(node, Chars):
        return _letters(node)
    if isinstance(node, Seq):
        return Seq(tuple(map(encoded, node.parts)))
    if isinstance(node, Choice):
        return Choice(tuple(map(encoded, node.options)))
    if isinstance(node, Ref):
        raise TypeError(f"a pattern has no rules; got {node.name}")
    return Repeat(encoded(node.part), node.least, node.most)


def other_texts(names: Sequence[str]) -> Node:
    """Any text but ``names``, as it stands in a JSON string. Raises UnsupportedError for too many names."""
    if sum(map(len, names)) > MOST_BEGINNINGS:
        raise UnsupportedError(f"json_schema: property names must have at most {MOST_BEGINNINGS:,} letters together")
    return _unlike(list(dict.fromkeys(names)))


def _unlike(names: list[str]) -> Node:
    options: list[Node] = [] if "" in names else [Seq()]
    heads = dict.fromkeys(name[0] for name in names if name)
    for head in heads:
        rest = _unlike([name[1:] for name in names if name.startswith(head)])
        options.append(Seq((literal(_letter(head)), rest)))
    other = _letters(others(chars(*((ord(head), ord(head)) for head in heads))))
    options.append(Seq((other, Repeat(LETTER, 0, None))))
    return Choice(tuple(options))


def _letter(letter: str) -> str:
    if letter in _SHORT:
        return f"\\{_SHORT[letter]}"
    return f"\\u{ord(letter):04x}" if ord(letter) in _ESCAPED else letter


def _letters(letters: Chars) -> Node:
    """One of several characters. Control characters without a short escape are left out where there are others: they make grammars long."""
    if not letters.ranges:
        raise InputError("a pattern must match something; got a class without a character")
    plain = chars(*((max(low, a), min(high, b)) for low, high in letters.ranges for a, b in _PLAIN.ranges))
    escaped = [chr(code) for code in _ESCAPED if any(low <= code <= high for low, high in letters.ranges)]
    short = chars(*((ord(_SHORT[letter]), ord(_SHORT[letter])) for letter in escaped if letter in _SHORT))
    options: list[Node] = [plain] if plain.ranges else []
    options += [Seq((literal("\\"), short))] if short.ranges else []
    options = options or [literal(_letter(letter)) for letter in escaped]
    return options[0] if len(options) == 1 else Choice(tuple(options))


_CONTROL = Seq((
    literal("\\u00"),
    Choice((
        Seq((literal("0"), chars((0x30, 0x37), (0x62, 0x62), (0x65, 0x66)))),
        Seq((literal("1"), chars((0x30, 0x39), (0x61, 0x66)))),
        literal("7f"),
    )),
))  # fmt: skip
LETTER: Node = Choice((_letters(ANY), _CONTROL))
"""Any character of a JSON string."""


def quoted_pattern(node: Node) -> Node:
    """A JSON string whose inside is ``node``."""
    return Seq((QUOTE, node, QUOTE))


def as_json(value: object) -> str:
    """A value that is no object or list, in JSON."""
    return f'"{written(value)}"' if isinstance(value, str) else json.dumps(value)
