"""What approximate search costs in quality: how much of what exact search finds it finds, too."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.engine import Vectors
from luthier.core.errors import InputError
from luthier.core.run import Progress, no_progress

if TYPE_CHECKING:
    from luthier.knowledge.base import KnowledgeBase
    from luthier.knowledge.index import Index


@dataclass(frozen=True)
class AnnRecall:
    """``recall``: the mean share of the exact ``k`` nearest that are among the approximate ``k`` (recall@k, as in ann-benchmarks: Aumueller,
    Bernhardsson and Faithfull 2020), ``worst`` the least of any query. ``approximate`` of ``chunks`` are in the approximate index; 0: there is none,
    and both searches are the same. Times are medians of one search.
    """

    queries: int
    k: int
    recall: float
    worst: float
    chunks: int
    approximate: int
    ann_ms: float
    exact_ms: float

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def measure(index: Index, queries: Vectors, k: int = 10, progress: Progress = no_progress) -> AnnRecall:
    """Search for each of ``queries``, (queries, width), both ways. Raises InputError for an empty index, no queries, or ``k`` below 1."""
    if k < 1:
        raise InputError(f"k must be 1 or more; got {k}")
    if not len(queries):
        raise InputError("queries must not be empty")
    shares, ann_s, exact_s = [], [], []
    for done, vector in enumerate(queries, 1):
        start = time.perf_counter()
        found = {hit.chunk.id for hit in index.dense(vector, k)}
        between = time.perf_counter()
        nearest = {hit.chunk.id for hit in index.dense(vector, k, exact=True)}
        exact_s.append(time.perf_counter() - between)
        ann_s.append(between - start)
        if nearest:
            shares.append(len(found & nearest) / len(nearest))
        progress("measure", done, len(queries))
    if not shares:
        raise InputError("the index has no vectors to find", hint="luthier kb add NAME PATH")
    return AnnRecall(
        queries=len(shares),
        k=k,
        recall=float(np.mean(shares)),
        worst=min(shares),
        chunks=index.count(),
        approximate=index.approximate(),
        ann_ms=float(np.median(ann_s)) * 1000,
        exact_ms=float(np.median(exact_s)) * 1000,
    )


def ann_recall(
    base: KnowledgeBase,
    sample: int = 200,
    k: int = 10,
    *,
    questions: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = no_progress,
) -> AnnRecall:
    """``measure`` on a base's own index, with ``questions``, or with a sentence out of each of ``sample`` of its chunks.

    Chunks are drawn at random (``seed``); a sentence of a chunk is near it but not its vector, as a question is. Raises InputError for a base
    without chunks, and for ``sample`` or ``k`` below 1.
    """
    if sample < 1:
        raise InputError(f"sample must be 1 or more; got {sample}")
    texts = list(questions) or _sentences(base, sample, random.Random(seed))
    if not texts:
        raise InputError(f"{base.name} has no chunks to look for", hint=f"luthier kb add {base.name} PATH")
    return measure(base.index, base.embedder.embed_queries(texts), k, progress)


def _sentences(base: KnowledgeBase, sample: int, draw: random.Random) -> list[str]:
    """A sentence of each of some chunks; each chunk of the base is as likely."""
    from luthier.knowledge.chunkers._spans import sentence_starts

    documents = [each for each in base.documents() if each.status == "ready" and each.chunks]
    if not documents:
        return []
    counts = [each.chunks for each in documents]
    chosen = draw.choices(documents, counts, k=min(sample, sum(counts)))
    out = []
    for document in chosen:
        number = draw.randrange(document.chunks)
        hits = [hit for hit in base.index.of_document(document.id, number, number) if hit.chunk.searched]
        if hits:
            text = hits[0].chunk.embedded
            starts = [*sentence_starts(text), len(text)]
            cut = [text[start:end].strip() for start, end in itertools.pairwise(starts)]
            out.append(draw.choice([each for each in cut if each] or [text]))
    return out
