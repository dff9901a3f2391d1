"""Entities, relations and events that an answer names against those of the target: right is every part to the letter; no partial credit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from luthier.scorers import _spans
from luthier.scorers._json import find_json
from luthier.scorers._score import Answer, Floats, Score, Target
from luthier.scorers._spans import Found


class Config(_spans.Averaged):
    """``of``: what is counted, as InstructUIE (Wang et al. 2023, section 4.1) does. An entity is its type and text, a relation its type, head
    and tail, a ``trigger`` the type and trigger of an event, an ``argument`` the event's type, the role and the text; ``all`` are these four
    together. Each counts once a text. ``average`` and ``measure`` as in scorer ``entity_f1``.
    """

    of: Literal["all", "entities", "relations", "triggers", "arguments"] = "all"


def score(answer: Answer, target: Target, config: Config) -> Score:
    """F1 of one example. The figure of a set is ``combine`` of ``sums``, not the mean of these.

    Answers are the JSON object of ``luthier.data.extraction``, or a bare list of entities; it may stand in a fence or between words.
    """
    return _spans.scored(*_read(answer, target, config))


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """Right, wanted and given of each type."""
    return _spans.sums([_read(answer, target, config)[:2] for answer, target in zip(answers, targets, strict=True)])


def combine(totals: Floats, config: Config) -> Floats:
    """Micro, macro or weighted precision, recall or F1 of each row."""
    return _spans.combine(totals, config)


def _read(answer: Answer, target: Target, config: Config) -> tuple[Found, Found, str]:
    try:
        wanted = _found(find_json(target.text, "whole"), config)
    except ValueError as error:
        return {}, {}, f"target: {error}"
    try:
        return wanted, _found(find_json(answer.text, "anywhere"), config), ""
    except ValueError as error:
        return wanted, {}, str(error)


def _found(value: Any, config: Config) -> Found:
    out: Found = {}
    parts = value if isinstance(value, Mapping) else {"entities": value}
    for of, kind, what in _tuples(parts):
        if config.of in ("all", of):
            out.setdefault(f"{of} {kind}", set()).add(what)
    return out


def _tuples(parts: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(what it is, its type, the texts); what lacks a type or a text is passed over."""
    for each in _objects(parts.get("entities")):
        if texts := _texts(each.get("type", each.get("label")), each.get("text")):
            yield "entities", texts[0], texts[1:]
    for each in _objects(parts.get("relations")):
        if texts := _texts(each.get("type"), each.get("head"), each.get("tail")):
            yield "relations", texts[0], texts[1:]
    for each in _objects(parts.get("events")):
        if texts := _texts(each.get("type"), each.get("trigger")):
            yield "triggers", texts[0], texts[1:]
        for part in _objects(each.get("arguments")):
            if texts := _texts(each.get("type"), part.get("role"), part.get("text")):
                yield "arguments", texts[0], texts[1:]


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _texts(*values: Any) -> tuple[str, ...]:
    """The values without white space around them; empty when one is no text."""
    return tuple(value.strip() for value in values) if all(isinstance(v, str) and v.strip() for v in values) else ()
