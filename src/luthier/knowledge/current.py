"""An index as the base has it now.

A process that is adding documents, or died while it was, has rows in the index that the database does not know yet, or no longer. Searches
leave them out, and ask for more in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from luthier.core.document import Hit
from luthier.core.engine import Vectors
from luthier.core.errors import StoreError
from luthier.knowledge.index import Filter

if TYPE_CHECKING:
    from luthier.knowledge.base import KnowledgeBase

_TRIES = 8


class RebuiltError(StoreError):
    """The base got another index while it was searched: ask again."""


class Searches(Protocol):
    """The part of ``Index`` that answers."""

    def dense(self, vector: Vectors, k: int, where: Filter | None = None, *, exact: bool = False) -> list[Hit]:
        """The nearest chunks."""

    def keyword(self, text: str, k: int, where: Filter | None = None) -> list[Hit]:
        """The best by words."""

    def get(self, ids: Sequence[str]) -> list[Hit]:
        """By ids."""

    def of_document(self, document: str, first: int = 0, last: int | None = None) -> list[Hit]:
        """By their place in a document."""

    def count(self) -> int:
        """How many there are."""


class CurrentIndex:
    """The searches of a base's index, over the documents that the base has."""

    def __init__(self, base: KnowledgeBase) -> None:
        base.refresh()
        self._base, self._index, self._generation = base, base.index, base.record.generation

    def dense(self, vector: Vectors, k: int, where: Filter | None = None, *, exact: bool = False) -> list[Hit]:
        """As ``Index.dense``."""
        return self._search(lambda most: self._index.dense(vector, most, where, exact=exact), k)

    def keyword(self, text: str, k: int, where: Filter | None = None) -> list[Hit]:
        """As ``Index.keyword``."""
        return self._search(lambda most: self._index.keyword(text, most, where), k)

    def get(self, ids: Sequence[str]) -> list[Hit]:
        """As ``Index.get``."""
        return self._search(lambda most: self._index.get(ids), len(ids))

    def of_document(self, document: str, first: int = 0, last: int | None = None) -> list[Hit]:
        """As ``Index.of_document``; nothing for a document that the base has not."""
        return self._search(lambda most: self._index.of_document(document, first, last), None)

    def count(self) -> int:
        """Chunks in the index, those of unfinished additions among them."""
        return self._index.count()

    def _search(self, ask: Callable[[int], list[Hit]], k: int | None) -> list[Hit]:
        """The best ``k`` of what ``ask`` finds that the base has, as it was at one moment: asked again when it changes meanwhile."""
        most, kept = k or 0, list[Hit]()
        for _ in range(_TRIES):
            try:
                found = ask(most)
            except (StoreError, OSError, RuntimeError) as error:
                self._base.refresh()  # says so when the base was removed
                if self._base.record.generation != self._generation:
                    raise RebuiltError("the base was rebuilt while it was searched") from error
                if isinstance(error, StoreError):
                    raise
                raise StoreError(f"the index of {self._base.name} cannot be searched: {error}") from error
            changed = self._base.refresh()
            if self._base.record.generation != self._generation:
                raise RebuiltError("the base was rebuilt while it was searched")
            known = self._base.known()
            kept = [hit for hit in found if hit.document in known]
            if k is None or (not changed and (len(kept) >= k or len(found) < most)):
                break
            most += 0 if changed else max(most, len(found) - len(kept))
        return kept if k is None else kept[:k]
