"""A JSON schema as alternatives of one type each: what its combinations (``anyOf``, ``allOf``, ``$ref`` beside others, lists of types) come to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, TypeAlias

from luthier.core.errors import UnsupportedError
from luthier.models.json_schema import resolve

Alternative: TypeAlias = Mapping[str, Any]
"""Keywords of one ``type``; or ``const`` alone; or ``$ref`` alone, which is looked up where it stands, so that schemas may hold themselves."""

TYPES = ("object", "array", "string", "number", "boolean", "null")
_OF_TYPE = {
    "object": ("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_OF_TYPE["integer"] = _OF_TYPE["number"]
MOST = 2_000
_DEEPEST = 40


class Alternatives:
    """Takes schemas of one document apart. ``root`` is what ``$ref`` looks into; ``lenient`` takes ``oneOf`` for ``anyOf``."""

    def __init__(self, root: Mapping[str, Any], lenient: bool = False) -> None:
        self._root, self._lenient = root, lenient
        self._depth = 0

    def of(self, schema: Mapping[str, Any] | bool) -> list[Alternative]:
        """The alternatives of ``schema``; none when nothing follows it. Raises UnsupportedError for what cannot be taken apart."""
        self._depth += 1
        try:
            if self._depth > _DEEPEST:
                raise UnsupportedError("json_schema: a schema that holds itself beside other keywords cannot be held")
            return self._of(schema)
        finally:
            self._depth -= 1

    def _of(self, schema: Mapping[str, Any] | bool) -> list[Alternative]:
        if isinstance(schema, bool):
            return [{"type": kind} for kind in TYPES] if schema else []
        parts: list[list[Alternative]] = []
        plain = [key for key in schema if key == "type" or any(key in keys for keys in _OF_TYPE.values())]
        if plain:
            parts.append(_typed(schema))
        if "const" in schema:
            parts.append([{"const": schema["const"]}])
        if "enum" in schema:
            parts.append([{"const": value} for value in schema["enum"]])
        if "$ref" in schema:
            parts.append([{"$ref": schema["$ref"]}])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                options = [self.of(option) for option in schema[key]]
                if key == "oneOf" and not self._lenient:
                    self._check_apart(options)
                parts.append([one for option in options for one in option])
        parts += [self.of(option) for option in schema.get("allOf", ())]
        found = parts[0] if parts else self._of(True)
        for part in parts[1:]:
            found = self._both(found, part)
        return found

    def _both(self, left: list[Alternative], right: list[Alternative]) -> list[Alternative]:
        left, right = self._looked_up(left), self._looked_up(right)
        if len(left) * len(right) > MOST:
            raise UnsupportedError(f"json_schema: anyOf and allOf come to more than {MOST:,} alternatives")
        return [both for one in left for other in right if (both := self._merged(one, other)) is not None]

    def _looked_up(self, alternatives: list[Alternative]) -> list[Alternative]:
        out: list[Alternative] = []
        for one in alternatives:
            if "$ref" in one:
                out += self._looked_up(self.of(resolve(self._root, one["$ref"])))
            else:
                out.append(one)
        return out

    def _merged(self, one: Alternative, other: Alternative) -> Alternative | None:
        if "const" in one or "const" in other:
            known, held = (one, other) if "const" in one else (other, one)
            return known if self._follows(known["const"], held) else None
        kinds = {one["type"], other["type"]}
        if len(kinds) == 2 and kinds != {"integer", "number"}:
            return None
        out: dict[str, Any] = {"type": "integer" if "integer" in kinds else one["type"]}
        if out["type"] == "object":
            return out | _merged_objects(one, other)
        if out["type"] == "array":
            return out | _merged_arrays(one, other)
        for key in {*one, *other} - {"type"}:
            values = [each[key] for each in (one, other) if key in each]
            out[key] = values[0] if len(values) == 1 else _tighter(key, *values)
        return out

    def _follows(self, value: Any, held: Alternative) -> bool:
        """Whether a value follows an alternative."""
        if "const" in held:
            return _same(value, held["const"])
        import jsonschema

        patterns = {"allOf": [{"pattern": each} for each in _listed(held["pattern"])]} if "pattern" in held else {}
        plain = {key: one for key, one in held.items() if key != "pattern"}
        return bool(jsonschema.Draft202012Validator({**plain, **patterns, **_definitions(self._root)}).is_valid(value))

    def _check_apart(self, options: list[list[Alternative]]) -> None:
        """Raise UnsupportedError unless no value follows two of ``options``, so far as can be told."""
        looked_up = [self._looked_up(option) for option in options]
        for at, option in enumerate(looked_up):
            for other in looked_up[at + 1 :]:
                if not all(self._apart(one, two) for one in option for two in other):
                    raise UnsupportedError(
                        "json_schema: oneOf is held only where its options exclude one another (other types, or a required property with other constants)",
                        hint="use anyOf",
                    )

    def _apart(self, one: Alternative, other: Alternative) -> bool:
        both = self._merged(one, other)
        if both is None:
            return True
        if both.get("type") != "object":
            return False
        needed = [name for name in both.get("required", ()) if name in both.get("properties", {})]
        return any(not self._looked_up(self.of(both["properties"][name])) for name in needed)


def _definitions(root: Mapping[str, Any]) -> dict[str, Any]:
    return {key: root[key] for key in ("$defs", "definitions") if key in root}


def _typed(schema: Mapping[str, Any]) -> list[Alternative]:
    given = schema.get("type", TYPES)
    kinds = [given] if isinstance(given, str) else list(given)
    if "number" in kinds:
        kinds = [kind for kind in kinds if kind != "integer"]
    return [{"type": kind} | {key: schema[key] for key in _OF_TYPE.get(kind, ()) if key in schema} for kind in kinds]


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0, and neither is true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other) if isinstance(one, str | None) else bool(one == other)


def _tighter(key: str, one: Any, other: Any) -> Any:
    if key in ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"):
        return max(one, other)
    if key in ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"):
        return min(one, other)
    if key == "multipleOf":
        left, right = Fraction(str(one)), Fraction(str(other))
        both = Fraction(math.lcm(left.numerator, right.numerator), math.gcd(left.denominator, right.denominator))
        return int(both) if both.denominator == 1 else float(both)
    return one if one == other else [*_listed(one), *_listed(other)]  # patterns


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _all(one: Any, other: Any) -> Any:
    """Both schemas in one."""
    if one is True or other is False:
        return other
    return one if other is True or one is False else {"allOf": [one, other]}


def _merged_objects(one: Alternative, other: Alternative) -> dict[str, Any]:
    if one.get("patternProperties") or other.get("patternProperties"):
        raise UnsupportedError("json_schema: patternProperties cannot be held", hint="use engine torch")
    free = [each.get("additionalProperties", True) for each in (one, other)]
    named = [each.get("properties", {}) for each in (one, other)]
    out: dict[str, Any] = {
        "properties": {
            name: _all(named[0].get(name, free[0]), named[1].get(name, free[1]))
            for name in dict.fromkeys([*named[0], *named[1]])
        },
        "additionalProperties": _all(*free),
        "required": list(dict.fromkeys([*one.get("required", ()), *other.get("required", ())])),
    }
    return out | _merged_sizes(one, other, "minProperties", "maxProperties")


def _merged_arrays(one: Alternative, other: Alternative) -> dict[str, Any]:
    firsts = [list(each.get("prefixItems", ())) for each in (one, other)]
    rests = [each.get("items", True) for each in (one, other)]
    count = max(map(len, firsts))
    padded = [first + [rest] * (count - len(first)) for first, rest in zip(firsts, rests, strict=True)]
    out: dict[str, Any] = {"prefixItems": list(map(_all, *padded)), "items": _all(*rests)}
    return out | _merged_sizes(one, other, "minItems", "maxItems")


def _merged_sizes(one: Alternative, other: Alternative, *keys: str) -> dict[str, Any]:
    out = {}
    for key in keys:
        values = [each[key] for each in (one, other) if key in each]
        if values:
            out[key] = values[0] if len(values) == 1 else _tighter(key, *values)
    return out
