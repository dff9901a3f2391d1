"""Filters of the OpenAI wire format, as far as an index can hold them: equal attributes, bounds of the date, and all of several."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from luthier.gateway.api.wire import bad, require_known
from luthier.knowledge.filters import read_filter
from luthier.knowledge.index import Filter

_DEEP = 4
_KINDS = ("eq", "gte", "lte", "and")
_NAMES = {"filename": "sources", "source": "sources", "file_id": "documents"}


def _checked(value: Any) -> dict[str, Any]:
    """``{"eq": [(key, value), ...], "after": ..., "before": ...}`` of a filter. Raises what names the place that cannot be."""
    out: dict[str, Any] = {"meta": {}, "sources": [], "documents": [], "after": "", "before": ""}
    _take(value, out, "", 0)
    return out


def _take(value: Any, out: dict[str, Any], at: str, depth: int) -> None:
    if not isinstance(value, dict) or depth > _DEEP:
        raise bad(f"must be an object with type, key and value, at most {_DEEP} deep", at)
    kind = value.get("type")
    if kind == "and":
        require_known(value, ("type", "filters"), at)
        inner = value.get("filters")
        if not isinstance(inner, list) or not 1 <= len(inner) <= 16:
            raise bad("must hold 1 to 16 filters", f"{at}.filters")
        for number, each in enumerate(inner):
            _take(each, out, f"{at}.filters[{number}]", depth + 1)
        return
    require_known(value, ("type", "key", "value"), at)
    key, wanted = value.get("key"), value.get("value")
    if kind not in _KINDS:
        raise bad(
            f"must be one of {', '.join(_KINDS)}; others are not supported here", f"{at}.type", code="unsupported_value"
        )
    if not isinstance(key, str) or not key or len(key) > 64:
        raise bad("must be text of 1 to 64 characters", f"{at}.key")
    if not isinstance(wanted, str | int | float | bool) or len(str(wanted)) > 512:
        raise bad("must be text of at most 512 characters, a number, or true or false", f"{at}.value")
    if kind == "eq":
        _equal(key, wanted, out, at)
    elif key != "date" or not isinstance(wanted, str):
        raise bad(
            f"{kind} is of the key date, with a day or a time such as 2026-11-20", f"{at}.key", code="unsupported_value"
        )
    else:
        place = "after" if kind == "gte" else "before"
        if out[place]:
            raise bad(f"has a second {kind} of the date", f"{at}.key")
        _date(place, wanted, at)
        out[place] = wanted


def _equal(key: str, wanted: Any, out: dict[str, Any], at: str) -> None:
    if key in _NAMES:
        if out[_NAMES[key]]:
            raise bad(f"asks twice for {key}", f"{at}.key")
        out[_NAMES[key]].append(str(wanted))
        return
    plain = whole(wanted)
    if key in out["meta"] and out["meta"][key] != plain:
        raise bad(f"asks for two values of {key} at once", f"{at}.key")
    out["meta"][key] = plain


def whole(value: Any) -> Any:
    """2026 for 2026.0: JSON has one kind of numbers, and attributes are compared as texts."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _date(place: str, text: str, at: str) -> None:
    from luthier.core.errors import InputError

    try:
        read_filter(after=text) if place == "after" else read_filter(before=text)
    except InputError as error:
        raise bad(error.message, f"{at}.value") from error


_COMPARISON = {
    "type": "object",
    "required": ["type", "key", "value"],
    "additionalProperties": False,
    "properties": {
        "type": {"enum": ["eq", "gte", "lte"]},
        "key": {"type": "string", "minLength": 1, "maxLength": 64},
        "value": {"anyOf": [{"type": "string", "maxLength": 512}, {"type": "number"}, {"type": "boolean"}]},
    },
}
_ALL = {
    "type": "object",
    "required": ["type", "filters"],
    "additionalProperties": False,
    "properties": {
        "type": {"const": "and"},
        "filters": {"type": "array", "minItems": 1, "maxItems": 16, "items": _COMPARISON},
    },
}
Condition = Annotated[dict[str, Any], PlainValidator(_checked), WithJsonSchema({"anyOf": [_COMPARISON, _ALL]})]


def filter_of(condition: dict[str, Any] | None) -> Filter | None:
    """The filter that a condition stands for. ``file_id`` of an uploaded file is part of its source."""
    if condition is None:
        return None
    given = dict(condition)
    sources = [each if "*" not in each else each.replace("*", "?") for each in given.pop("sources")]
    wanted = given.pop("documents")
    documents = [each for each in wanted if not each.startswith("file")]
    sources += [f"upload/{each}/*" for each in wanted if each.startswith("file")]
    return read_filter(documents=documents, sources=sources, **given)
