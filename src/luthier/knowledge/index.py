"""What an index of chunks can do, whatever keeps it (the catalogue ``knowledge/indexes``)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from luthier.core.document import Chunk, Hit
from luthier.core.engine import Vectors

Metric = Literal["cosine", "dot", "l2", "hamming"]


@dataclass(frozen=True, slots=True)
class IndexRow:
    """A chunk as it is kept. ``vector`` is (width,) float32, None for a chunk that is not searched by meaning.

    ``date`` is ISO 8601; ``meta`` holds plain values that searches may ask for.
    """

    chunk: Chunk
    document: str
    source: str
    title: str = ""
    labels: tuple[str, ...] = ()
    date: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    vector: Vectors | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """What a search may find: all that is stated must hold.

    ``labels``: documents without access labels and those with one of these; None: every document (the owner asks). ``sources`` are
    patterns of which one must fit the whole source: ``*`` stands for any characters, ``?`` for one. ``meta`` values must be equal (as text; of a
    list one must be). ``after`` and ``before`` bound ``date`` (inclusive, compared as text: ``before="2026"`` ends with 2025).
    """

    labels: tuple[str, ...] | None = None
    documents: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    after: str = ""
    before: str = ""

    def allows(self, row: IndexRow) -> bool:
        """Whether a row may be found: what backends' own filters must agree with."""
        checks = (
            self.labels is None or not row.labels or bool(set(self.labels) & set(row.labels)),
            not self.documents or row.document in self.documents,
            not self.sources or any(fits(row.source, pattern) for pattern in self.sources),
            all(tag(name, value) in tags(row.meta) for name, value in self.meta.items()),
            not self.after or row.date >= self.after,
            not self.before or (bool(row.date) and row.date <= self.before),
        )
        return all(checks)


def fits(source: str, pattern: str) -> bool:
    """Whether a pattern of ``Filter.sources`` fits. Unlike a shell's, ``[`` stands for itself: file names have it."""
    return re.fullmatch(glob_regex(pattern), source) is not None


def glob_regex(pattern: str) -> str:
    """A pattern of ``Filter.sources`` as a regular expression."""
    return "(?s:" + "".join({"*": ".*", "?": "."}.get(each) or re.escape(each) for each in pattern) + ")"


def tag(name: str, value: Any) -> str:
    """A value of ``meta`` as the text that indexes keep it as."""
    return f"{name}={value}"


def tags(meta: Mapping[str, Any]) -> list[str]:
    """All plain values of ``meta`` as texts; a list counts as each of its values."""
    out = []
    for name, value in meta.items():
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, str | int | float | bool):
                out.append(tag(name, each))
    return out


class Index(Protocol):
    """Chunks of one knowledge base. Safe from several threads; one process writes at a time (the base holds a lock)."""

    def add(self, rows: Sequence[IndexRow]) -> None:
        """Keep rows, atomically; rows with the same chunk ids are replaced."""

    def remove(self, documents: Sequence[str]) -> None:
        """Drop all rows of these documents, atomically."""

    def dense(self, vector: Vectors, k: int, where: Filter | None = None, *, exact: bool = False) -> list[Hit]:
        """The ``k`` nearest chunks; a higher score is nearer. ``exact`` compares with every one."""

    def keyword(self, text: str, k: int, where: Filter | None = None) -> list[Hit]:
        """The ``k`` best chunks by BM25 (Robertson and Zaragoza 2009)."""

    def get(self, ids: Sequence[str]) -> list[Hit]:
        """Chunks by their ids, in that order; unknown ones are left out."""

    def of_document(self, document: str, first: int = 0, last: int | None = None) -> list[Hit]:
        """The chunks of a document with numbers from ``first`` to ``last``, in order."""

    def documents(self) -> list[str]:
        """The documents that have chunks here."""

    def count(self) -> int:
        """How many chunks there are."""

    def approximate(self) -> int:
        """How many vectors the approximate index holds; 0: there is none, and every search compares all."""

    def optimize(self) -> None:
        """Bring search structures up to date with what was added."""

    def drop(self) -> None:
        """Close it, and delete what it keeps outside of its folder (which is the caller's)."""

    def close(self) -> None:
        """Free files and connections. Safe to call twice."""
