"""Random JSON schemas that can be followed: nested, with every keyword that Luthier holds."""

from __future__ import annotations

import random
from typing import Any

NAMES = ("name", "id", "city", "total", "tags", "ok", "kind", "note", "größe", "数量", 'a "b"', "x-y", "created at", "")
WORDS = ("yes", "no", "refund", "包裹", 'say "hi"', "a\\b", "", "two\nlines", "naïve", "🙂")
PATTERNS = (
    "^[a-z]{2,6}$",
    "^[A-Z]{2}-[0-9]{3}$",
    r"^\d{1,4}$",
    "^(red|green|blue)$",
    r"^\w+\s\w+$",
    "[0-9]",
    "^a",
    "z$",
    "^[^ ]{1,5}$",
    r"^(ab|c)*d$",
)
FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "hostname", "duration", "uri")


def random_schema(chance: random.Random) -> dict[str, Any]:
    """A schema of an object, an array or (seldom) something else, with definitions that it may refer to."""
    maker = _Maker(chance)
    kind = chance.choices(("object", "array", "any"), (0.75, 0.15, 0.1))[0]
    schema = {"object": maker.object, "array": maker.array, "any": maker.value}[kind](3)
    if maker.definitions:
        schema = {**schema, "$defs": maker.definitions}
    return schema


class _Maker:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.definitions: dict[str, Any] = {}

    def value(self, depth: int) -> dict[str, Any]:
        """A schema of anything, at most ``depth`` levels deep."""
        simple = (self.string, self.string, self.integer, self.number, self.literal, self.options)
        if depth <= 0:
            return self.chance.choice(simple)(0)
        deep = (self.object, self.array, self.any_of, self.one_of, self.all_of, self.reference, self.tree)
        return self.chance.choice(simple + deep)(depth - 1)

    def string(self, depth: int) -> dict[str, Any]:
        kind = self.chance.random()
        if kind < 0.3:
            pattern = self.chance.choice(PATTERNS)
            endless = not pattern.endswith("$") or not pattern.startswith("^") or "*" in pattern or "+" in pattern
            limited = self.chance.random() < (0.95 if endless else 0.3)  # random tokens seldom end a text by themselves
            return {"type": "string", "pattern": pattern} | ({"maxLength": 9} if limited else {})
        if kind < 0.6:
            name = self.chance.choice(FORMATS)
            long = name in ("email", "hostname", "uri") and self.chance.random() < 0.9
            return {"type": "string", "format": name} | ({"maxLength": 30} if long else {})
        least = self.chance.choice((0, 0, 1, 3))
        return {"type": "string", "maxLength": least + self.chance.randint(0, 12)} | (
            {"minLength": least} if least else {}
        )

    def integer(self, depth: int) -> dict[str, Any]:
        low = self.chance.choice((-1_000_000, -137, -5, 0, 1, 7, 99))
        out: dict[str, Any] = {"type": "integer"}
        if self.chance.random() < 0.7:
            out[self.chance.choice(("minimum", "exclusiveMinimum"))] = low
        if self.chance.random() < 0.7:
            out[self.chance.choice(("maximum", "exclusiveMaximum"))] = low + self.chance.choice((2, 10, 12_345))
        if self.chance.random() < 0.2:
            out = {"type": "integer", "multipleOf": self.chance.choice((2, 3, 5, 7)), "minimum": -50, "maximum": 5_000}
        return out

    def number(self, depth: int) -> dict[str, Any]:
        low = self.chance.choice((-273.15, -1.5, -0.001, 0, 0.25, 3.14159, 10))
        out: dict[str, Any] = {"type": "number"}
        if self.chance.random() < 0.7:
            out[self.chance.choice(("minimum", "exclusiveMinimum"))] = low
        if self.chance.random() < 0.7:
            out[self.chance.choice(("maximum", "exclusiveMaximum"))] = low + self.chance.choice((0.5, 1, 99.9))
        return out | ({"multipleOf": 0.5} if len(out) == 1 and self.chance.random() < 0.3 else {})

    def literal(self, depth: int) -> dict[str, Any]:
        known = (*WORDS, 0, -1.5, 42, True, None, ["a", 1], {"a": 1, "b": [None]}, 1e-5, 123456789012)
        if self.chance.random() < 0.5:
            return {"const": self.chance.choice(known)}
        return {"enum": self.chance.sample(known, self.chance.randint(1, 5))}

    def options(self, depth: int) -> dict[str, Any]:
        return {"type": self.chance.sample(("integer", "boolean", "null"), self.chance.randint(1, 3))}

    def array(self, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {"type": "array", "items": self.value(depth), "maxItems": self.chance.randint(1, 4)}
        if self.chance.random() < 0.4:
            out["minItems"] = self.chance.randint(0, out["maxItems"])
        if self.chance.random() < 0.25:
            out["prefixItems"] = [self.value(depth) for _ in range(self.chance.randint(1, 2))]
            if self.chance.random() < 0.5:
                out["items"] = False
                out.pop("minItems", None)
        return out

    def object(self, depth: int) -> dict[str, Any]:
        names = self.chance.sample(NAMES, self.chance.randint(1, 5))
        out: dict[str, Any] = {"type": "object", "properties": {name: self.value(depth) for name in names}}
        out["required"] = [name for name in names if self.chance.random() < 0.6]
        self.chance.shuffle(out["required"])
        kind = self.chance.random()
        if kind < 0.85:
            out["additionalProperties"] = False
        elif kind < 0.96:
            out["additionalProperties"] = self.chance.choice(
                ({"type": "integer"}, {"type": "boolean"}, {"enum": ["x", "y"]})
            )
        if self.chance.random() < 0.2:
            out["minProperties"] = 1
        if self.chance.random() < 0.3:
            out |= {"title": "Things", "description": "what they are", "x-unknown": {"type": "nothing"}}
        return out

    def any_of(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.value(depth) for _ in range(self.chance.randint(2, 3))]}

    def one_of(self, depth: int) -> dict[str, Any]:
        if self.chance.random() < 0.5:
            return {"oneOf": [{"type": "string", "maxLength": 5}, self.integer(depth), {"type": "null"}]}
        options = []
        for kind in self.chance.sample(("cat", "dog", "fish"), 2):
            other = self.object(depth)
            other["properties"] = {"kind": {"const": kind}} | {
                k: v for k, v in other["properties"].items() if k != "kind"
            }
            other["required"] = ["kind", *(name for name in other["required"] if name != "kind")]
            options.append(other)
        return {"oneOf": options}

    def all_of(self, depth: int) -> dict[str, Any]:
        if self.chance.random() < 0.5:
            return {"allOf": [{"type": "integer", "minimum": -7}, {"maximum": 120}]}
        first, second = self.object(depth), self.object(depth)
        for one in (first, second):
            one.pop("additionalProperties", None)
            one.pop("minProperties", None)
        names = set(first["properties"])
        second["properties"] = {name: schema for name, schema in second["properties"].items() if name not in names}
        second["required"] = [name for name in second["required"] if name in second["properties"]]
        return {"allOf": [first, second]}

    def reference(self, depth: int) -> dict[str, Any]:
        name = f"part{len(self.definitions)}"
        self.definitions[name] = True  # the name is taken while it is made
        self.definitions[name] = self.value(depth)
        return {"$ref": f"#/$defs/{name}"}

    def tree(self, depth: int) -> dict[str, Any]:
        """A schema that holds itself."""
        self.definitions["tree"] = {
            "type": "object",
            "properties": {
                "leaf": {"type": "integer", "minimum": 0, "maximum": 9},
                "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
            },
            "required": ["leaf", "next"],
            "additionalProperties": False,
        }
        return {"$ref": "#/$defs/tree"}
