"""JSON schemas in GBNF: objects with their properties in the schema's order, arrays, strings, numbers.

At most one space stands after an opening bracket, a comma or a colon, and before a closing bracket: small models repeat spaces without end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from itertools import product
from typing import Any, TypeAlias

from luthier.core.errors import UnsupportedError
from luthier.models.derivatives import matches
from luthier.models.gbnf_numbers import number
from luthier.models.gbnf_reader import quoted
from luthier.models.gbnf_rules import Rules
from luthier.models.json_schema import resolve
from luthier.models.json_text import LETTER, as_json, encoded, other_texts, quoted_pattern
from luthier.models.patterns import Repeat, lengths, parse, repeated, to_gbnf
from luthier.models.schema_alternatives import Alternative, Alternatives
from luthier.models.string_form import StringForm

Schema: TypeAlias = Mapping[str, Any] | bool

_COMMA, _COLON = '"," " "?', '":" " "?'
_ARRAY, _ARRAY_END = '"[" " "?', '" "? "]"'
_OBJECT, _OBJECT_END = '"{" " "?', '" "? "}"'
MOST_ITEMS = 2_000
MOST_PATTERNS = 4


class SchemaRules:
    """Writes one schema (as ``json_schema.read_schema`` gives it) into ``rules``; ``lenient`` as there."""

    def __init__(self, rules: Rules, root: Mapping[str, Any], lenient: bool = False) -> None:
        self._rules = rules
        self._alternatives = Alternatives(root, lenient)
        self._root = root
        self._known: dict[str, str] = {}
        self._comma = rules.token(_COMMA)

    def rule(self, schema: Schema) -> str | None:
        """A rule for the values that follow ``schema``; None when there are none. A schema that holds itself becomes a rule that calls itself."""
        key = json.dumps(schema)
        if key not in self._known:
            self._known[key] = name = self._rules.new()
            found = [body for one in self._alternatives.of(schema) if (body := self._one(one)) is not None]
            if not found:
                self._known[key] = ""
            self._rules.name(name, " | ".join(dict.fromkeys(found)) or quoted("\uffff\uffff"))  # nothing
        return self._known[key] or None

    def _one(self, one: Alternative) -> str | None:
        if "$ref" in one:
            return self.rule(resolve(self._root, one["$ref"]))
        if "const" in one:
            return self._const(one["const"])
        kind = one["type"]
        if kind in ("null", "boolean"):
            return self._rules.token('"null"' if kind == "null" else '"true" | "false"')
        writers: dict[str, Callable[[Alternative], str | None]] = {
            "integer": self._number, "number": self._number, "string": self._string, "array": self._array, "object": self._object,
        }  # fmt: skip
        return writers[kind](one)

    def _const(self, value: Any) -> str | None:
        if isinstance(value, dict):
            each = {name: {"const": inner} for name, inner in value.items()}
            return self.rule(
                {"type": "object", "properties": each, "required": list(each), "additionalProperties": False}
            )
        if isinstance(value, list):
            each_item = [{"const": inner} for inner in value]
            return self.rule({"type": "array", "prefixItems": each_item, "minItems": len(value), "items": False})
        return self._rules.token(quoted(as_json(value)))

    def _number(self, one: Alternative) -> str | None:
        least, above = _bound(one, "minimum", "exclusiveMinimum", max)
        most, below = _bound(one, "maximum", "exclusiveMaximum", min)
        multiple = Decimal(str(one["multipleOf"])) if "multipleOf" in one else None
        whole = one["type"] == "integer"
        return number(self._rules, least=least, most=most, above=above, below=below, whole=whole, multiple=multiple)

    def _string(self, one: Alternative) -> str | None:
        least, most = one.get("minLength", 0), one.get("maxLength")
        if most is not None and least > most:
            return None
        if "pattern" not in one:
            return self._rules.token(to_gbnf(quoted_pattern(Repeat(LETTER, least, most))))
        patterns = [one["pattern"]] if isinstance(one["pattern"], str) else list(one["pattern"])
        node = parse(patterns[0], search=True)
        shortest, longest = lengths(node)
        if len(patterns) == 1 and shortest >= least and (most is None or (longest is not None and longest <= most)):
            return self._rules.token(to_gbnf(quoted_pattern(encoded(node))))
        return self._strings(StringForm(tuple(patterns), (), (), least, most))

    def _strings(self, form: StringForm) -> str | None:
        """A token for strings that several things are asked of; None when there is none."""
        return self._rules.token(form.line()) if form.is_possible() else None

    # ---- arrays

    def _array(self, one: Alternative) -> str | None:
        prefix, rest = list(one.get("prefixItems", ())), one.get("items", True)
        least, most = one.get("minItems", 0), one.get("maxItems")
        if (most is not None and (least > most or most > MOST_ITEMS)) or least > MOST_ITEMS:
            if least <= (most or least):
                raise UnsupportedError(f"json_schema: minItems and maxItems must be at most {MOST_ITEMS:,}")
            return None
        rules = [self.rule(item) for item in prefix[: most if most is not None else len(prefix)]]
        if None in rules:
            rules = rules[: rules.index(None)]
            most = min(most, len(rules)) if most is not None else len(rules)
        free = self.rule(rest) if most is None or most > len(rules) else None
        if free is None:
            most = min(most, len(rules)) if most is not None else len(rules)
        if least > (most if most is not None else least):
            return None
        inner = self._items([str(rule) for rule in rules], free, least, most)
        return self._rules.add(f"{self._rules.token(_ARRAY)} {inner} {self._rules.token(_ARRAY_END)}")

    def _items(self, rules: Sequence[str], free: str | None, least: int, most: int | None) -> str:
        """Items in order: the first of ``rules``, then ``free`` ones; an empty list where none is needed."""
        comma = self._comma
        tail = '""'
        if free is not None:
            before = max(len(rules), 1)
            tail = repeated(f"({comma} {free})", max(0, least - before), None if most is None else most - before)
        first = [*rules] or ([free] if free is not None and most != 0 else [])
        for at in range(len(first) - 1, 0, -1):
            item = f"{comma} {first[at]} {tail}"
            tail = self._rules.add(item) if at < least else f"{self._rules.add(item)}?"
        if not first:
            return '""'
        whole = self._rules.add(f"{first[0]} {tail}")
        return whole if least else f"{whole}?"

    # ---- objects

    def _object(self, one: Alternative) -> str | None:
        named: dict[str, Schema] = dict(one.get("properties", {}))
        extra: Schema = one.get("additionalProperties", True)
        patterns: dict[str, Schema] = one.get("patternProperties", {})
        required = dict.fromkeys(one.get("required", ()))
        for name in [*named, *(name for name in required if name not in named)]:
            held = [schema for pattern, schema in patterns.items() if matches(parse(pattern, search=True), name)]
            named[name] = _all_of([*([named[name]] if name in named else [] if held else [extra]), *held])
        pairs: list[tuple[str, bool]] = []
        for name, schema in named.items():
            value = self.rule(schema)
            if value is None and name in required:
                return None
            if value is not None:
                key = self._rules.token(f"{quoted(as_json(name))} {_COLON}")
                pairs.append((self._rules.add(f"{key} {value}"), name in required))
        free = self._free_pairs(list(named), patterns, extra)
        body = self._pairs(pairs, free, one.get("minProperties", 0), one.get("maxProperties"))
        opening, closing = self._rules.token(_OBJECT), self._rules.token(_OBJECT_END)
        return None if body is None else self._rules.add(f"{opening} {body} {closing}")

    def _free_pairs(self, named: list[str], patterns: Mapping[str, Schema], extra: Schema) -> str | None:
        """A rule for a pair whose name is none of ``named``: one for each set of ``patterns`` that a name may match."""
        if len(patterns) > MOST_PATTERNS:
            raise UnsupportedError(
                f"json_schema: patternProperties must be at most {MOST_PATTERNS}; got {len(patterns)}"
            )
        out = []
        for matched in product((False, True), repeat=len(patterns)):
            held = [schema for (_, schema), match in zip(patterns.items(), matched, strict=True) if match]
            value = self.rule(_all_of(held) if held else extra)
            name = self._name(named, list(patterns), matched) if value is not None else None
            if name is not None:
                out.append(self._rules.add(f"{name} {value}"))
        return self._rules.add(" | ".join(out)) if out else None

    def _name(self, named: list[str], patterns: list[str], matched: Sequence[bool]) -> str | None:
        """A name that is none of ``named`` and matches just those of ``patterns``, and the colon after it."""
        if not patterns:
            return self._rules.token(f"{to_gbnf(quoted_pattern(other_texts(named)))} {_COLON}")
        held = tuple(pattern for pattern, match in zip(patterns, matched, strict=True) if match)
        without = tuple(pattern for pattern, match in zip(patterns, matched, strict=True) if not match)
        string = self._strings(StringForm(held, without, tuple(named), 0, None))
        return None if string is None else f"{string} {self._rules.token(_COLON)}"

    def _pairs(self, pairs: list[tuple[str, bool]], free: str | None, least: int, most: int | None) -> str | None:
        """Pairs in order, those that are not needed left out or not, then free ones; ``least`` to ``most`` of them."""
        comma = self._comma
        known: dict[tuple[int, int], str | None] = {}

        def rest(at: int, count: int) -> str | None:
            """What may follow when pairs up to ``at`` are settled and ``count`` (of those that matter) are there."""
            if (at, count) not in known:
                known[at, count] = self._rules.add(body) if (body := written(at, count)) is not None else None
            return known[at, count]

        def written(at: int, count: int) -> str | None:
            if at == len(pairs):
                return self._free(free, count, least, most)
            pair, needed = pairs[at]
            options = []
            if most is None or count < most:
                then = rest(at + 1, count + 1 if most is not None else min(count + 1, max(least, 1)))
                options += [] if then is None else [f"{f'{comma} ' if count else ''}{pair} {then}"]
            left_out = None if needed else rest(at + 1, count)
            options += [] if left_out is None else [left_out]
            return " | ".join(options) or None

        return rest(0, 0)

    def _free(self, free: str | None, count: int, least: int, most: int | None) -> str | None:
        """The end of an object of ``count`` pairs: free ones, as many as are allowed."""
        missing, room = max(0, least - count), None if most is None else most - count
        if free is None or room == 0:
            return None if missing else '""'
        if room is not None and room < missing:
            return None
        pair = f"({self._comma} {free})"
        if count:
            return repeated(pair, missing, room)
        some = f"{free} {repeated(pair, max(0, missing - 1), None if room is None else room - 1)}"
        return some if missing else f"({some})?"


def _bound(
    one: Alternative, plain: str, strict: str, pick: Callable[[Decimal, Decimal], Decimal]
) -> tuple[Decimal | None, bool]:
    """The tighter of two bounds, and whether it is left out itself."""
    values = [(Decimal(repr(one[key])), key == strict) for key in (strict, plain) if key in one]
    if not values:
        return None, False
    best = values[0][0] if len(values) == 1 else pick(values[0][0], values[1][0])
    return best, any(open_ for value, open_ in values if value == best)


def _all_of(schemas: Sequence[Schema]) -> Schema:
    return schemas[0] if len(schemas) == 1 else {"allOf": list(schemas)}
