"""What the steps of a search pass to one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from luthier.core.document import Hit
from luthier.core.engine import Engine, Sampling, Vectors
from luthier.core.errors import InputError
from luthier.core.message import Message
from luthier.knowledge.current import Searches
from luthier.knowledge.index import Filter

_CHINESE = range(0x4E00, 0x9FFF + 1)


@dataclass(frozen=True, slots=True)
class Query:
    """A question on its way: ``k`` chunks are wanted. ``history`` are earlier turns, the user's and the assistant's in turn, oldest first.

    ``vector`` is embedded in place of the text when it is there.
    """

    text: str
    k: int
    where: Filter | None = None
    history: tuple[str, ...] = ()
    vector: Vectors | None = None


Search: TypeAlias = Callable[[Query], list[Hit]]


@dataclass(frozen=True)
class SearchTools:
    """What steps may use: the index, its embedder (unit vectors of passages and of questions), a model that writes, one that reranks, and
    the time. ``folder`` is the base's own and ``embedder`` the digest of its embedder, for steps that keep something beside the index.
    """

    index: Searches
    embed: Callable[[Sequence[str]], Vectors]
    now: datetime
    ask: Engine | None = None
    reranker: Engine | None = None
    embed_queries: Callable[[Sequence[str]], Vectors] | None = None
    folder: Path | None = None
    embedder: str = ""

    def vector_of(self, query: Query) -> Vectors:
        """What stands for the question when chunks are compared with it: (width,)."""
        if query.vector is not None:
            return query.vector
        found: Vectors = (self.embed_queries or self.embed)([query.text])[0]
        return found

    def write(self, step: str, instruction: str, text: str, *, tokens: int = 128) -> str:
        """What the model writes; ``text`` is shown to it as data. Raises InputError when there is no model."""
        if self.ask is None:
            raise InputError(f"retrieval step {step} has a model write; none was given", hint="--writer MODEL")
        prompt = (Message("user", f"{instruction}\n\n<text>\n{text}\n</text>"),)
        return self.ask.generate([prompt], Sampling(max_new_tokens=tokens))[0].text.strip()


def fused(lists: Sequence[Sequence[Hit]], weights: Sequence[float], k: int, *, constant: int = 60) -> list[Hit]:
    """Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): a chunk's score is the sum of weight / (constant + rank)."""
    scores: dict[str, float] = {}
    first: dict[str, Hit] = {}
    for hits, weight in zip(lists, weights, strict=True):
        for rank, hit in enumerate(hits, 1):
            key = hit.chunk.id
            scores[key] = scores.get(key, 0.0) + weight / (constant + rank)
            known = first.get(key)
            first[key] = hit if known is None else replace(known, scores={**hit.scores, **known.scores})
    best = sorted(scores, key=lambda key: -scores[key])[:k]
    return [replace(first[key], score=scores[key]) for key in best]


def unique(hits: Sequence[Hit]) -> list[Hit]:
    """The first of each chunk."""
    return list({hit.chunk.id: hit for hit in reversed(hits)}.values())[::-1]


def is_chinese(text: str) -> bool:
    """Whether a text is to be answered in Chinese."""
    return sum(ord(each) in _CHINESE for each in text) > 0.2 * max(1, len(text.strip()))


def lines_of(text: str) -> list[str]:
    """The lines of a list that a model wrote, without numbers and marks."""
    import re

    cleaned = (re.sub(r"^\s*(?:[-*•]|\d+[.)、:])\s*", "", line).strip().strip('"') for line in text.splitlines())
    return [line for line in cleaned if line]
