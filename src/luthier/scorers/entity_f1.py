"""Entities that an answer names against those of the target: right is exactly the same place and type, as seqeval counts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.scorers import _spans
from luthier.scorers._json import find_json
from luthier.scorers._score import Answer, Floats, Score, Target
from luthier.scorers._spans import Found

Config = _spans.Averaged


def score(answer: Answer, target: Target, config: Config) -> Score:
    """F1 of one example. The figure of a set is ``combine`` of ``sums``, not the mean of these.

    An answer is a JSON list of ``{"type", "start", "end"}``, or an object with such a list as ``entities``. An entity without places, as models
    that write text give it, is taken to be at the first place where its ``text`` stands and none of its type has been found yet.
    """
    return _spans.scored(*_read(answer, target))


def sums(answers: Sequence[Answer], targets: Sequence[Target], config: Config) -> Floats:
    """Right, wanted and given entities of each type."""
    return _spans.sums([_read(answer, target)[:2] for answer, target in zip(answers, targets, strict=True)])


def combine(totals: Floats, config: Config) -> Floats:
    """Micro, macro or weighted precision, recall or F1 of each row (Tjong Kim Sang and De Meulder 2003, section 5)."""
    return _spans.combine(totals, config)


def _read(answer: Answer, target: Target) -> tuple[Found, Found, str]:
    try:
        wanted = _entities(find_json(target.text, "whole"), target.input)
    except ValueError as error:
        return {}, {}, f"target: {error}"
    try:
        return wanted, _entities(find_json(answer.text, "anywhere"), target.input), ""
    except ValueError as error:
        return wanted, {}, str(error)


def _entities(value: Any, text: str) -> Found:
    """Type -> places. What is no entity is passed over."""
    out: Found = {}
    listed = value.get("entities") if isinstance(value, Mapping) else value
    for each in listed if isinstance(listed, list) else ():
        kind = each.get("type", each.get("label")) if isinstance(each, Mapping) else None
        if not isinstance(kind, str):
            continue
        places = out.setdefault(kind.strip(), set())
        start, end, said = each.get("start"), each.get("end"), each.get("text")
        if isinstance(start, int) and isinstance(end, int):
            places.add((start, end))
        elif isinstance(said, str) and said:
            at = text.find(said)
            while at >= 0 and (at, at + len(said)) in places:
                at = text.find(said, at + 1)
            places.add((at, at + len(said)) if at >= 0 else ("nowhere", said))
    return out
