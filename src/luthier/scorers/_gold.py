"""Which passages answer a question, as the row of the question says it, and whether a chunk that was found is one of them.

A row can name chunks (``chunk``: ids), places (``context_id``, ``document``, ``source``: a path or its end, a file name with or without
its suffix, a title, a document's id) or passages (``context``: the text), each one or a list, or a mapping to grades. With one place and
answers, a chunk must also hold an answer; without any of these, every chunk that holds an answer is right.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from luthier.core.document import Hit
from luthier.core.score import Target
from luthier.scorers._ranking import Ranked
from luthier.scorers._words import UNSPACED, holds, reference_texts

Match = Literal["answer", "document"]
CHUNKS, PLACES, TEXTS = "chunk", ("context_id", "document", "source"), "context"
NAMES = (CHUNKS, *PLACES, TEXTS)
"""Keys of a row that say where its answer is."""
_BETWEEN = re.compile(rf"(?<=[{UNSPACED}])\s+(?=[{UNSPACED}])")


@dataclass(frozen=True, slots=True)
class Gold:
    """What is to be found: ``chunks``, ``places`` and ``texts`` with their grades, or any chunk with one of ``answers``."""

    chunks: tuple[tuple[str, float], ...] = ()
    places: tuple[tuple[str, float], ...] = ()
    texts: tuple[tuple[str, float], ...] = ()
    answers: tuple[str, ...] = ()

    @property
    def grades(self) -> tuple[float, ...]:
        """Of all passages, in order; one of grade 1 where answers alone are known."""
        told = (*self.chunks, *self.places, *self.texts)
        return tuple(grade for _, grade in told) or (1.0,)

    def found_by(self, hit: Hit) -> frozenset[int]:
        """The passages, as places in ``grades``, that a chunk is or holds."""
        text = plain(hit.chunk.text)
        if not (self.chunks or self.places or self.texts):
            return frozenset({0} if self._answered(text) else ())
        alone = len(self.places) == 1 and bool(self.answers)
        out = [name == hit.chunk.id for name, _ in self.chunks]
        out += [_is_at(hit, place) and (not alone or self._answered(text)) for place, _ in self.places]
        out += [_overlaps(text, passage) and (not self.answers or self._answered(text)) for passage, _ in self.texts]
        return frozenset(number for number, right in enumerate(out) if right)

    def _answered(self, text: str) -> bool:
        return any(holds(text, answer, whole_words=True) for answer in self.answers)


def gold_of(target: Target, match: Match = "answer") -> Gold | None:
    """What ``target`` says is to be found; None for a question without an answer, or about whose answer's place nothing is known.

    ``match`` document takes every chunk of a right document, whether it holds an answer or not.
    """
    if unanswerable(target):
        return None
    meta = target.meta
    places = tuple(pair for name in PLACES for pair in _graded(meta.get(name)))
    texts = tuple((plain(text), grade) for text, grade in _graded(meta.get(TEXTS)))
    answers = tuple(filter(None, (plain(text) for text in reference_texts(target.accepted))))
    chunks = _graded(meta.get(CHUNKS))
    if not (chunks or places or texts or answers) or (match == "document" and not (chunks or places or texts)):
        return None
    return Gold(chunks, places, texts, () if match == "document" else answers)


def ranked(gold: Gold, hits: Sequence[Hit]) -> Ranked:
    """The list of hits, judged."""
    return Ranked.of([gold.found_by(hit) for hit in hits], gold.grades)


def unanswerable(target: Target) -> bool:
    """Whether the row says that the documents do not answer it: ``answerable: false``, or an empty list of answers."""
    told = target.meta.get("answerable")
    if told is not None:
        return str(told).strip().lower() in ("false", "0", "no")
    return "answers" in target.meta and not reference_texts(target.accepted)


def plain(text: str) -> str:
    """Without case, with single spaces, none between Chinese characters: how a document was laid out does not matter."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _BETWEEN.sub("", text)


def _graded(value: Any) -> tuple[tuple[str, float], ...]:
    if isinstance(value, Mapping):
        return tuple((str(name), float(grade)) for name, grade in value.items() if float(grade) > 0)
    if isinstance(value, str | int):
        value = (value,)
    return tuple((str(each), 1.0) for each in value or () if str(each).strip())


def _is_at(hit: Hit, place: str) -> bool:
    path = PurePosixPath(hit.source)
    named = {hit.source, hit.document, hit.title, path.name, path.stem, str(hit.meta.get("id", ""))}
    return place in named or hit.source.endswith("/" + place.lstrip("/"))


def _overlaps(text: str, passage: str) -> bool:
    return bool(text) and (text in passage or passage in text)
