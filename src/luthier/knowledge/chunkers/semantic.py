"""Cut where neighbouring sentences are least alike."""

from __future__ import annotations

import itertools

import numpy as np
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.core.engine import Vectors
from luthier.knowledge.chunkers._need import embedder
from luthier.knowledge.chunkers._spans import ChunkTools, Cut, Joined, Span, key_of


class Config(EntryConfig):
    """A cut is made where the similarity of what is before and after is among the lowest ``percentile`` percent of the document.

    ``window`` sentences on each side are compared. Chunks have at most ``tokens`` tokens, and at least ``least`` where a cut is all that
    would make them shorter.
    """

    percentile: float = Field(default=20.0, gt=0.0, lt=100.0)
    window: int = Field(default=2, ge=1)
    tokens: int = Field(default=300, ge=8)
    least: int = Field(default=40, ge=0)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """Runs of sentences that belong together by their embeddings. Raises InputError without an embedder."""
    joined = Joined(document, tools)
    key = key_of("semantic", config.model_dump())
    pieces = [(start, end) for start, end in itertools.pairwise(joined.sentences) if joined.text[start:end].strip()]
    spans: list[Cut] = []
    for start, end in _runs(joined, pieces, config, tools):
        spans += joined.fit((start, end), config.tokens)
    return [joined.chunk(span, number, key) for number, span in enumerate(spans)]


def _runs(joined: Joined, pieces: list[Span], config: Config, tools: ChunkTools) -> list[Span]:
    cuts: set[int] = set()
    if len(pieces) > 2:
        vectors = embedder(tools, "semantic")([joined.text[start:end] for start, end in pieces])
        alike = similarities(vectors, config.window)
        bound = float(np.percentile(alike, config.percentile))
        cuts = {at for at, value in enumerate(alike.tolist(), 1) if value <= bound}
    out: list[Span] = []
    begin = 0
    for at, (start, end) in enumerate(pieces):
        if at in cuts and joined.count((begin, start)) >= config.least:
            out.append((begin, start))
            begin = start
        if at == len(pieces) - 1:
            short = out and joined.count((begin, end)) < config.least and joined.fits((out[-1][0], end), config.tokens)
            begin = out.pop()[0] if short else begin
            out.append((begin, end))
    return out


def similarities(vectors: Vectors, window: int) -> Vectors:
    """The cosine of the mean of ``window`` vectors before each sentence but the first and the mean of those from it on; shape (sentences - 1,)."""
    sums = np.concatenate([np.zeros((1, vectors.shape[1])), np.cumsum(vectors, 0, dtype=np.float64)])
    at = np.arange(1, len(vectors))
    before = sums[at] - sums[np.maximum(at - window, 0)]
    after = sums[np.minimum(at + window, len(vectors))] - sums[at]
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return np.asarray((before * after).sum(1) / np.maximum(norms, 1e-12), np.float32)
