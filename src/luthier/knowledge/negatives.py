"""Chunks that a search finds for a question and that do not answer it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from luthier.core.document import Hit
from luthier.scorers._gold import plain
from luthier.scorers._words import holds

if TYPE_CHECKING:
    from luthier.knowledge.base import KnowledgeBase


def holds_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether one of ``answers`` stands in ``text``, whatever its case and spaces, and not inside a word."""
    read = plain(text)
    return any(holds(read, wanted, whole_words=True) for wanted in map(plain, answers) if wanted)


def negatives_of(
    base: KnowledgeBase, question: str, answers: Sequence[str], gold: Collection[str], n: int
) -> list[Hit]:
    """The first ``n`` chunks of a search that are none of ``gold`` (ids) and hold none of ``answers``: near the question, and no answer to it."""
    if n < 1:
        return []
    out: list[Hit] = []
    for hit in base.search(question, min(4 * n + 10, 100)):
        chunk = hit.chunk
        if {chunk.id, chunk.parent} & set(gold) or holds_answer(chunk.text, answers):
            continue
        if all(chunk.text != each.chunk.text for each in out):
            out.append(hit)
        if len(out) == n:
            break
    return out
