"""Questions and the chunks of a base that answer them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from luthier.core.dataset import Example
from luthier.core.document import Hit
from luthier.core.errors import InputError
from luthier.core.score import target_of
from luthier.knowledge.synthesis import chunks_of
from luthier.scorers._gold import gold_of

if TYPE_CHECKING:
    from luthier.knowledge.base import KnowledgeBase

_SEARCHED = 50


@dataclass(frozen=True)
class Asked:
    """A question, its accepted answers (none: the documents do not say), and the chunks that hold them, the shortest first."""

    question: str
    answers: tuple[str, ...]
    gold: tuple[Hit, ...]

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the right chunks."""
        return frozenset(hit.chunk.id for hit in self.gold)

    @property
    def document(self) -> str:
        """The first right chunk's document; "" without one."""
        return self.gold[0].document if self.gold else ""


def locate(base: KnowledgeBase, questions: Iterable[Example], chunks: Sequence[Hit] | None = None) -> list[Asked]:
    """Each question with the chunks that its row points to (``chunk``, ``source``, ``document``, ``context``: see ``scorers._gold``); by its answers
    alone among what a search finds. Questions whose chunks are not in the base have none."""
    chunks = chunks_of(base) if chunks is None else chunks
    by_id = {hit.chunk.id: hit for hit in chunks}
    by_place: dict[str, list[Hit]] = {}
    for hit in chunks:
        path = PurePosixPath(hit.source)
        for name in {hit.source, hit.document, hit.title, path.name, path.stem, str(hit.meta.get("id", ""))} - {""}:
            by_place.setdefault(name, []).append(hit)
    out = []
    for example in questions:
        target = target_of(example)
        gold = gold_of(target)
        near: list[Hit] = []
        if gold is not None:
            near = [by_id[name] for name, _ in gold.chunks if name in by_id]
            for place, _ in gold.places:
                near += by_place.get(place) or by_place.get(PurePosixPath(place).name, [])
            if not (gold.chunks or gold.places):
                near = base.search(example.text, _SEARCHED)
        right = {hit.chunk.id: hit for hit in near if hit.chunk.searched and gold is not None and gold.found_by(hit)}
        found = sorted(right.values(), key=lambda hit: (len(hit.chunk.text), hit.chunk.id))
        out.append(Asked(example.text, tuple(filter(None, target.accepted)), tuple(found)))
    return out


def apart(questions: Sequence[Asked], share: float, seed: int) -> tuple[list[Asked], list[Asked]]:
    """(those to learn from, ``share`` of them held out); all about one document are on one side, or all about one chunk when there is one
    document only. Raises InputError when there is nothing to cut."""
    for place in ("document", "chunk"):
        groups: dict[str, list[Asked]] = {}
        for each in questions:
            groups.setdefault(each.document if place == "document" else each.gold[0].chunk.id, []).append(each)
        if len(groups) > 1:
            break
    else:
        raise InputError(
            f"{len(questions)} questions about one chunk cannot be cut into those to learn from and those to prove by"
        )
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    held: list[Asked] = []
    while len(names) > 1 and (not held or len(held) < share * len(questions)):
        held += groups[names.pop()]
    return [each for name in names for each in groups[name]], held
