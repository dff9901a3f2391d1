"""JSON schemas (draft 2020-12) of answers: checked, and written so that every engine holds the same.

What cannot be held while text is drawn is refused by its name, never left out in silence (unless ``lenient``, as for tools that are not
strict). Patterns and formats become patterns of ``luthier.models.patterns``, so that they mean the same everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from luthier.core.errors import InputError
from luthier.models.patterns import parse

REFUSED = frozenset(
    [
        "not",
        "if",
        "then",
        "else",
        "dependentSchemas",
        "dependentRequired",
        "dependencies",
        "propertyNames",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
        "unevaluatedProperties",
        "unevaluatedItems",
        "$dynamicRef",
        "$dynamicAnchor",
        "$recursiveRef",
        "$recursiveAnchor",
        "contentSchema",
    ]
)
"""Keywords that mean something and cannot be held. Keywords that the specification does not know mean nothing and are left out."""

_ONE = ("additionalProperties", "items", "additionalItems")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties")

_FOURS = "(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    "(?:(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])-"
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|(?:[0-9]{{2}}{_FOURS}|{_FOURS}00)-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_H = "[0-9a-fA-F]"
_N = "[0-9]{1,4}"
_URI = "[a-zA-Z0-9._~!$&'()*+,;=:@-]*"
FORMATS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:{_N}W|{_N}D(?:T{_N}[HMS])?|T{_N}[HMS]|{_N}Y(?:{_N}M(?:{_N}D)?)?)",
    "email": rf"[a-zA-Z0-9_+-]+(?:\.[a-zA-Z0-9_+-]+){{0,4}}@{_LABEL}(?:\.{_LABEL}){{1,4}}",
    "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,4}}",
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
    "ipv6": f"(?:{_H}{{1,4}}:){{7}}{_H}{{1,4}}|(?:{_H}{{1,4}}:){{1,6}}:|::(?:{_H}{{1,4}}:){{0,5}}{_H}{{1,4}}",
    "uuid": f"{_H}{{8}}-{_H}{{4}}-{_H}{{4}}-{_H}{{4}}-{_H}{{12}}",
    "uri": rf"https?://{_LABEL}(?:\.{_LABEL}){{0,4}}(?::{_N})?(?:/{_URI})*(?:\?{_URI})?(?:#{_URI})?",
}
"""What a string of each format is held to: never more than its specification allows, and only dates and times that there are."""

LARGEST = 10**15
"""Whole numbers up to here are the same in every reader of JSON; bounds beyond it are drawn in."""

_COARSEST = 10_000
_SIZES = {"minimum": 1, "maximum": -1, "exclusiveMinimum": 1, "exclusiveMaximum": -1}


def read_schema(value: str, *, lenient: bool = False) -> dict[str, Any]:
    """The schema in ``value``, with only those keywords that are held; formats become patterns.

    Raises InputError that says where it is wrong or which keyword cannot be held; ``lenient`` leaves such keywords out.
    """
    import jsonschema

    try:
        schema = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"json_schema is not JSON that can be read: {error}") from error
    if not isinstance(schema, dict):
        raise InputError(f"json_schema must be an object; got {value[:60]!r}")
    try:
        jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(schema)
        return _Writer(schema, lenient).whole()
    except jsonschema.SchemaError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "its top"
        raise InputError(f"json_schema is not a valid schema at {where}: {error.message}") from error
    except RecursionError as error:
        raise InputError("json_schema is nested too deeply") from error


class _Writer:
    """Writes one schema anew, subschema by subschema."""

    def __init__(self, root: dict[str, Any], lenient: bool) -> None:
        self._root, self._lenient = root, lenient
        self._targets: dict[str, str] = {}
        self._definitions: dict[str, Any] = {}

    def whole(self) -> dict[str, Any]:
        """The schema, with what it refers to under ``$defs``."""
        written: dict[str, Any] = self.write(self._root, "")
        return written | ({"$defs": self._definitions} if self._definitions else {})

    def write(self, schema: Any, path: str) -> Any:
        if not isinstance(schema, dict):
            return schema
        out: dict[str, Any] = {}
        for key, value in _of_today(schema).items():
            if key in _MAPS:
                out[key] = {name: self.write(inner, f"{path}/{key}/{name}") for name, inner in value.items()}
            elif key in _LISTS:
                out[key] = [self.write(inner, f"{path}/{key}/{at}") for at, inner in enumerate(value)]
            elif key in _ONE:
                out[key] = self.write(value, f"{path}/{key}")
            else:
                self._keyword(out, key, value, path)
        self._text(schema, out, path)
        self._size(schema, out, path)
        return out

    def _keyword(self, out: dict[str, Any], key: str, value: Any, path: str) -> None:
        if key in REFUSED and not (key == "uniqueItems" and value is False):
            self._refuse(key, path)
        elif key == "$ref":
            out[key] = self._reference(value, path)
        elif key in ("const", "enum"):
            for one in value if key == "enum" else [value]:
                _check_numbers(one, f"{path}/{key}")
            out[key] = value
        elif key in _SIZES:
            self._bound(out, key, value, path)
        elif key == "multipleOf":
            if round(value * 10**6) != value * 10**6 or value * 10 ** max(0, -_exponent(value)) > _COARSEST:
                self._refuse(f"multipleOf {value}", path)
            else:
                out[key] = value
        elif key == "$id" and path:
            self._refuse("$id inside of a schema", path)
        elif key in (
            "type",
            "required",
            "minItems",
            "maxItems",
            "minLength",
            "maxLength",
            "minProperties",
            "maxProperties",
        ):
            out[key] = value

    def _bound(self, out: dict[str, Any], key: str, value: float, path: str) -> None:
        inner = max(-LARGEST, min(LARGEST, value))
        if inner != value and (inner > value) != (_SIZES[key] > 0):
            self._refuse(f"{key} {value}", path)
        else:
            out[key] = inner

    def _text(self, schema: Mapping[str, Any], out: dict[str, Any], path: str) -> None:
        """``pattern`` and ``format``."""
        patterns = []
        for key in ("pattern", "format"):
            if key not in schema:
                continue
            if key == "format" and schema[key] not in FORMATS:
                self._refuse(f"format {schema[key]} (held are {', '.join(FORMATS)})", path)
                continue
            found = schema[key] if key == "pattern" else f"^(?:{FORMATS[schema[key]]})$"
            try:
                parse(found, search=True)
                patterns.append(found)
            except InputError as error:
                self._refuse(error.message, path)
        if patterns:
            out["pattern"] = patterns[0]
        if len(patterns) > 1:
            out.setdefault("allOf", []).append({"type": "string", "pattern": patterns[1]})

    def _size(self, schema: Mapping[str, Any], out: dict[str, Any], path: str) -> None:
        """How many properties there are, which nobody counts where names are free (two may be the same)."""
        least = out.get("minProperties", 0)
        if least <= len(set(out.get("required", ()))):
            out.pop("minProperties", None)
        elif least > 1 and (out.get("additionalProperties") is not False or out.get("patternProperties")):
            out.pop("minProperties")
            self._refuse(f"minProperties {least} where names are free", path)

    def _reference(self, reference: str, path: str) -> str:
        """Where the written schema keeps what ``reference`` points at."""
        here = path or "its top"
        if reference.rstrip("#/") == "":
            return "#"
        if not reference.startswith("#/"):
            raise InputError(
                f"json_schema: $ref at {here} must begin with #/, as nothing outside of the schema is read; got {reference[:80]!r}"
            )
        if reference not in self._targets:
            try:
                found = resolve(self._root, reference)
            except KeyError:
                raise InputError(f"json_schema: $ref at {here} leads nowhere: {reference[:80]!r}") from None
            name = self._targets[reference] = f"ref{len(self._targets)}"
            self._definitions[name] = self.write(found, reference)
        return f"#/$defs/{self._targets[reference]}"

    def _refuse(self, what: str, path: str) -> None:
        if not self._lenient:
            raise InputError(
                f"json_schema: {what} at {path or 'its top'} cannot be held while text is drawn",
                hint="leave it out of the schema and check the answer for it",
            )


def resolve(root: Any, reference: str) -> Any:
    """What ``reference`` (``#`` or ``#/...``, RFC 6901) points at. Raises KeyError when there is nothing."""
    found = root
    for part in reference.removeprefix("#").split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict) and name in found:
            found = found[name]
        else:
            raise KeyError(reference)
    return found


def _of_today(schema: dict[str, Any]) -> dict[str, Any]:
    """A subschema of an earlier draft in the words of 2020-12."""
    out = dict(schema)
    for key, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(out.get(key), bool) and out.pop(key) and limit in out:  # draft 4
            out[key] = out.pop(limit)
    if isinstance(out.get("items"), list):
        out["prefixItems"] = out.pop("items")
        if "additionalItems" in out:
            out["items"] = out["additionalItems"]
    out.pop("additionalItems", None)
    return out


def _check_numbers(value: Any, path: str) -> None:
    """Raise InputError for a whole number that a double cannot hold."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_numbers(inner, path)
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        raise InputError(
            f"json_schema: a whole number at {path} must be at most 2**53, which every reader of JSON holds; got {value}"
        )


def _exponent(value: float) -> int:
    return int(Decimal(str(value)).normalize().as_tuple().exponent)
