"""Rows of annotated texts: words with tags, texts with entities, relations and events."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from luthier.core.dataset import Example
from luthier.core.entities import Entity, answer_text, spans_of_tags
from luthier.core.message import Message
from luthier.data import fields
from luthier.data.fields import Fields, RowError

_CLOSE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\u3000-\u303f]")
"""Characters of scripts that are written without spaces."""


def tagged(row: Fields, field: str) -> Example:
    """Words and a tag for each (CoNLL). The text is the words with spaces between them; none between two Chinese or Japanese ones."""
    words, tags = row.pop("tokens"), row.pop(field)
    if not isinstance(words, list) or not words:
        raise RowError(f"tokens must be a list of words; got {fields.shown(words)}")
    if not isinstance(tags, list) or len(tags) != len(words):
        length = len(tags) if isinstance(tags, list) else fields.shown(tags)
        raise RowError(f"{field} must be as many as tokens, {len(words)}; got {length}")
    texts = [fields.checked_text(word, f"tokens[{at}]") for at, word in enumerate(words)]
    if numbers := [tag for tag in tags if not isinstance(tag, str)]:
        raise RowError(
            f"{field} must be texts like B-PERSON, I-PERSON and O, not their numbers; got {fields.shown(numbers[0])}"
        )
    try:
        spans = spans_of_tags(tags)
    except ValueError as error:
        raise RowError(f"{field}: {error}") from error
    text, starts = "", []
    for word in texts:
        close = text and _CLOSE.match(text[-1]) and _CLOSE.match(word[0])
        text += "" if not text or close else " "
        starts.append(len(text))
        text += word
    found = [Entity(starts[first], starts[end - 1] + len(texts[end - 1]), kind) for first, end, kind in spans]
    return Example("", (Message("user", text),), answer_text(text, found))


def with_entities(row: Fields) -> Example:
    """A text and its entities: ``type`` (or ``label``), ``start`` and ``end`` in characters, and if it is there the text itself to check."""
    said = fields.text(row, "text")
    found = entities(row.pop("entities"), said)
    return Example("", (Message("user", said),), answer_text(said, found))


def extracted(row: Fields) -> Example:
    """A text with relations or events (and entities): the target is a JSON object with those that the row has."""
    said = fields.text(row, "text")
    target: dict[str, Any] = {}
    if row.get("entities") is not None:
        target["entities"] = [
            {"type": e.type, "start": e.start, "end": e.end, "text": said[e.start : e.end]}
            for e in sorted(entities(row["entities"], said))
        ]
    if row.get("relations") is not None:
        target["relations"] = [_relation(each, f"relations[{at}]") for at, each in _listed(row, "relations")]
    if row.get("events") is not None:
        target["events"] = [_event(each, f"events[{at}]") for at, each in _listed(row, "events")]
    for field in ("entities", "relations", "events"):
        row.pop(field, None)
    if not target:
        raise RowError("relations and events are null")
    return Example("", (Message("user", said),), json.dumps(target, ensure_ascii=False))


def entities(value: Any, text: str) -> list[Entity]:
    """The entities of a text, checked against it."""
    if not isinstance(value, list):
        raise RowError(f"entities must be a list; got {fields.shown(value)}")
    return [_entity(each, f"entities[{at}]", text) for at, each in enumerate(value)]


def _entity(value: Any, where: str, text: str) -> Entity:
    each = _object(value, where)
    start, end = (_place(each.get(name), f"{where}: {name}") for name in ("start", "end"))
    if not 0 <= start < end <= len(text):
        raise RowError(
            f"{where}: start {start} and end {end} must lie in the text of {len(text)} characters, start before end"
        )
    stated = each.get("text", each.get("value"))
    if isinstance(stated, str) and stated != text[start:end]:
        raise RowError(
            f"{where}: the text at {start} to {end} is {fields.shown(text[start:end])}, not {fields.shown(stated)} (places are characters)"
        )
    return Entity(start, end, _type(each, where))


def _place(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RowError(f"{where} must be a place in the text, in characters; got {fields.shown(value)}")
    return value


def _listed(row: Fields, field: str) -> list[tuple[int, Any]]:
    if not isinstance(row[field], list):
        raise RowError(f"{field} must be a list; got {fields.shown(row[field])}")
    return list(enumerate(row[field]))


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RowError(f"{where} must be an object; got {fields.shown(value)}")
    return value


def _type(each: Mapping[str, Any], where: str) -> str:
    return fields.checked_text(each.get("type", each.get("label")), f"{where}: type").strip()


def _said(value: Any, where: str) -> str:
    """A text, or an object with it."""
    return fields.checked_text(value.get("text", value.get("value")) if isinstance(value, Mapping) else value, where)


def _relation(value: Any, where: str) -> dict[str, str]:
    each = _object(value, where)
    ends = {end: _said(each.get(end), f"{where}: {end}") for end in ("head", "tail")}
    return {"type": _type(each, where), **ends}


def _event(value: Any, where: str) -> dict[str, Any]:
    each = _object(value, where)
    parts = each.get("arguments") or []
    if not isinstance(parts, list):
        raise RowError(f"{where}: arguments must be a list; got {fields.shown(parts)}")
    arguments = []
    for at, part in enumerate(parts):
        one = _object(part, f"{where}: arguments[{at}]")
        role = fields.checked_text(one.get("role"), f"{where}: arguments[{at}]: role").strip()
        arguments.append({"role": role, "text": _said(one, f"{where}: arguments[{at}]: text")})
    trigger = _said(each.get("trigger"), f"{where}: trigger")
    return {"type": _type(each, where), "trigger": trigger, "arguments": arguments}
