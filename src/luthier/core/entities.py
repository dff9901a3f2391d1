"""Entities in texts, and the tags that mark them word by word.

Tags are IOB2 (Ramshaw and Marcus 1995; Tjong Kim Sang and Veenstra 1999): ``B-TYPE`` opens an entity, ``I-TYPE`` goes on with it, ``O`` is
outside. What ends where follows seqeval's (and conlleval's) reading: an ``I-`` that nothing opened opens an entity itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

OUTSIDE = "O"
_OPENS, _GOES_ON = ("B", "S", "U"), ("I", "E", "L")  # also of BIOES and BILOU


@dataclass(frozen=True, slots=True, order=True)
class Entity:
    """A stretch of characters of a text, ``start`` to before ``end``, and what it is."""

    start: int
    end: int
    type: str


def spans_of_tags(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first, after the last, type) of each entity, in order. Raises ValueError for a tag that is none of IOB2, BIOES or BILOU."""
    out: list[tuple[int, int, str]] = []
    open_type = ""
    for at, tag in enumerate(tags):
        if tag == OUTSIDE:
            open_type = ""
            continue
        mark, dash, kind = tag.partition("-")
        if not dash or not kind or mark not in (*_OPENS, *_GOES_ON):
            raise ValueError(f"tag {tag!r} is not O, B-TYPE or I-TYPE")
        if mark in _GOES_ON and kind == open_type:
            first, _, _ = out.pop()
            out.append((first, at + 1, kind))
        else:
            out.append((at, at + 1, kind))
        open_type = "" if mark in ("S", "U", "E", "L") else kind
    return out


def answer_text(text: str, entities: Iterable[Entity]) -> str:
    """Entities as an answer: a JSON list of ``{"type", "start", "end", "text"}``, in the order of the text."""
    listed = [{"type": e.type, "start": e.start, "end": e.end, "text": text[e.start : e.end]} for e in sorted(entities)]
    return json.dumps(listed, ensure_ascii=False)


def from_answer(answer: str) -> list[Entity]:
    """Inverse of ``answer_text``."""
    return [Entity(each["start"], each["end"], each["type"]) for each in json.loads(answer)]


def overlapping(entities: Iterable[Entity]) -> tuple[Entity, Entity] | None:
    """Two entities that share a character, if there are any."""
    ordered = sorted(entities)
    for one, other in pairwise(ordered):
        if other.start < one.end:
            return one, other
    return None


def counts_by_type(wanted: Iterable[Entity], given: Iterable[Entity]) -> dict[str, tuple[int, int, int]]:
    """Type -> (right, wanted, given). Right is the same type in exactly the same place; each place counts once."""
    gold, said = set(wanted), set(given)
    kinds = sorted({e.type for e in gold | said})
    return {
        kind: (
            sum(e.type == kind for e in gold & said),
            sum(e.type == kind for e in gold),
            sum(e.type == kind for e in said),
        )
        for kind in kinds
    }


def f1(right: float, wanted: float, given: float) -> float:
    """2 right / (wanted + given), 0 when there is neither."""
    return 2 * right / (wanted + given) if wanted + given else 0.0
