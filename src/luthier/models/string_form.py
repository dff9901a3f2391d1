"""JSON strings that several things are asked of at once: patterns that match, patterns and names that do not, a length.

One pattern cannot say that. For llama.cpp it becomes the rules of an automaton, for llguidance an intersection of patterns, which is one lexeme; in
between it is a rule ``%string``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from luthier.core.errors import InputError
from luthier.models.derivatives import together
from luthier.models.gbnf_rules import Rules, can_end
from luthier.models.json_text import LETTER, encoded, quoted_pattern
from luthier.models.patterns import Chars, Node, Repeat, literal, parse, to_gbnf, to_regex


@dataclass(frozen=True, slots=True)
class StringForm:
    """Strings in which all ``patterns`` are found, none of ``without``, that are none of ``names`` and have ``least`` to ``most`` characters."""

    patterns: tuple[str, ...]
    without: tuple[str, ...]
    names: tuple[str, ...]
    least: int
    most: int | None

    @staticmethod
    def read(value: str) -> StringForm:
        """The form in a rule's text. Raises InputError when it is none."""
        try:
            found = json.loads(value)
            patterns, without, names = (tuple(map(str, found[key])) for key in ("patterns", "without", "names"))
            most = None if found["most"] is None else int(found["most"])
            return StringForm(patterns, without, names, int(found["least"]), most)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"constraint grammar: %string cannot be read; got {value[:60]}") from error

    def line(self) -> str:
        """The body of a rule."""
        return f"%string {json.dumps(asdict(self))}"

    def rule(self, rules: Rules) -> str | None:
        """An expression in GBNF; None when no string has the form."""
        held, not_held = self._nodes()
        machine = together(held, self.least, self.most, without=not_held)
        inner = rules.automaton(*machine, write=_written)
        return None if inner is None else rf'"\"" {inner} "\""'

    def is_possible(self) -> bool:
        """Whether a string has the form."""
        held, not_held = self._nodes()
        return can_end(*together(held, self.least, self.most, without=not_held))

    def lexeme(self) -> str:
        """A terminal in Lark's syntax."""
        held, not_held = ([to_regex(quoted_pattern(encoded(node))) for node in nodes] for nodes in self._nodes())
        whole = to_regex(quoted_pattern(Repeat(LETTER, self.least, self.most)))
        return " & ".join([f"/{whole}/", *(f"/{each}/" for each in held), *(f"~/{each}/" for each in not_held)])

    def _nodes(self) -> tuple[list[Node], list[Node]]:
        held = [parse(pattern, search=True) for pattern in self.patterns]
        return held, [*(parse(pattern, search=True) for pattern in self.without), *map(literal, self.names)]


def _written(letters: Chars) -> str:
    return f"({to_gbnf(encoded(letters))})"
