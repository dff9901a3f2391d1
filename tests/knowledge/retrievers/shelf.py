"""An index in memory, whose searches are plain to read, and models that write and rerank what a test says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from luthier.core.document import Chunk, Hit
from luthier.core.engine import GENERATE, PARAMETERS, RERANK, EngineInfo, Generation, Sampling, Vectors
from luthier.core.errors import EngineError
from luthier.core.message import Prompt, last_user_text
from luthier.core.run import Progress, no_progress
from luthier.knowledge.index import Filter, IndexRow
from luthier.knowledge.retrievers._query import SearchTools

NOW = datetime(2026, 6, 1, tzinfo=UTC)
WIDTH = 16


def words(text: str) -> list[str]:
    """Latin words, single Chinese characters."""
    return re.findall(r"[a-z0-9]+|[\u4e00-\u9fff]", text.lower())


def embed(texts: Sequence[str]) -> Vectors:
    """The sum of a random direction for each word, unit length."""
    out = np.zeros((len(texts), WIDTH), np.float32)
    for at, text in enumerate(texts):
        for word in words(text) or [text]:
            seed = int.from_bytes(hashlib.sha256(word.encode("utf-8", "replace")).digest()[:4], "big")
            out[at] += np.random.default_rng(seed).normal(size=WIDTH)
    return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True), np.float32)


def row(
    number: int,
    text: str,
    *,
    document: str = "",
    labels: Sequence[str] = (),
    date: str = "",
    meta: Mapping[str, Any] | None = None,
    **chunk: Any,
) -> IndexRow:
    """A chunk of a document of its own, unless ``document`` says another."""
    made = Chunk(id=chunk.pop("id", f"c{number}"), text=text, number=number, blocks=(number, number), **chunk)
    name = document or f"d{number}"
    vector = embed([made.embedded])[0] if made.searched else None
    return IndexRow(made, name, f"{name}.txt", labels=tuple(labels), date=date, meta=dict(meta or {}), vector=vector)


class Shelf:
    """Rows in memory; dense is the cosine, keyword the number of common words."""

    def __init__(self, rows: Sequence[IndexRow]) -> None:
        self.rows = list(rows)
        self.calls = 0

    def dense(self, vector: Vectors, k: int, where: Filter | None = None, *, exact: bool = False) -> list[Hit]:
        return self._best(
            {r.chunk.id: float(r.vector @ vector) for r in self._seen(where) if r.vector is not None}, k, "dense"
        )

    def keyword(self, text: str, k: int, where: Filter | None = None) -> list[Hit]:
        asked = set(words(text))
        found = {r.chunk.id: float(len(asked & set(words(r.chunk.embedded)))) for r in self._seen(where)}
        return self._best({each: score for each, score in found.items() if score}, k, "keyword")

    def get(self, ids: Sequence[str]) -> list[Hit]:
        known = {r.chunk.id: r for r in self.rows}
        return [self._hit(known[each], 0.0, "") for each in ids if each in known]

    def of_document(self, document: str, first: int = 0, last: int | None = None) -> list[Hit]:
        found = [
            r
            for r in self.rows
            if r.document == document and first <= r.chunk.number <= (1e9 if last is None else last)
        ]
        return [self._hit(r, 0.0, "") for r in sorted(found, key=lambda r: r.chunk.number)]

    def count(self) -> int:
        return len(self.rows)

    def _seen(self, where: Filter | None) -> list[IndexRow]:
        self.calls += 1
        return [r for r in self.rows if r.chunk.searched and (where is None or where.allows(r))]

    def _best(self, scores: Mapping[str, float], k: int, by: str) -> list[Hit]:
        known = {r.chunk.id: r for r in self.rows}
        best = sorted(scores, key=lambda each: (-scores[each], each))[:k]
        return [self._hit(known[each], scores[each], by) for each in best]

    @staticmethod
    def _hit(each: IndexRow, score: float, by: str) -> Hit:
        meta = {**each.meta} | ({"date": each.date} if each.date else {})
        return Hit(each.chunk, each.document, each.source, score=score, scores={by: score} if by else {}, meta=meta)


class Writer:
    """Answers with ``says`` (a text, or a function of the prompt), or fails; keeps what it was asked."""

    def __init__(
        self, says: str | Callable[[str], str] = "", *, fails: bool = False, parameters: Sequence[str] = PARAMETERS
    ) -> None:
        self._says, self._fails = says, fails
        self.prompts: list[str] = []
        self.samplings: list[Sampling] = []
        self.info = EngineInfo("writer", "test", frozenset({GENERATE}), parameters=frozenset(parameters))

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        self.prompts += [last_user_text(prompt) for prompt in prompts]
        self.samplings.append(sampling)
        if self._fails:
            raise EngineError("the writer is down")
        says = [self._says if isinstance(self._says, str) else self._says(last_user_text(p)) for p in prompts]
        return [Generation(each, (), (), "stop") for each in says]


class Judge:
    """Reranks by ``score`` of each text, or gives back exactly ``gives``."""

    def __init__(self, score: Callable[[str], float] = len, *, gives: Any = None, fails: bool = False) -> None:
        self._score, self._gives, self._fails = score, gives, fails
        self.info = EngineInfo("judge", "test", frozenset({RERANK}))

    def rerank(self, query: str, documents: Sequence[str], progress: Progress = no_progress) -> list[float]:
        if self._fails:
            raise EngineError("the reranker is down")
        return [self._score(text) for text in documents] if self._gives is None else self._gives


def tools_for(shelf: Shelf, **more: Any) -> SearchTools:
    """Tools around a shelf."""
    return SearchTools(shelf, more.pop("embedder", embed), NOW, **more)
