"""Cut where neighbouring sentences are least alike."""

from __future__ import annotations

import itertools

import numpy as np
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.knowledge.chunkers._need import embedder
from luthier.knowledge.chunkers._spans import ChunkTools, Joined, Span, key_of


class Config(EntryConfig):
    """A cut is made where the similarity of what is before and after is among the lowest ``percentile`` percent of the document.

    ``window`` sentences on each side are compared. Chunks have ``least`` to ``tokens`` tokens.
    """

    percentile: float = Field(default=20.0, gt=0.0, lt=100.0)
    window: int = Field(default=2, ge=1)
    tokens: int = Field(default=300, ge=8)
    least: int = Field(default=40, ge=0)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """Runs of sentences that belong together by their embeddings. Raises InputError without an embedder."""
    joined = Joined(document, tools)
    key = key_of("semantic", config.model_dump())
    starts = joined.sentences
    pieces = [(start, end) for start, end in itertools.pairwise(starts) if joined.text[start:end].strip()]
    spans: list[Span] = []
    if pieces:
        cuts = _cuts(joined, pieces, config, tools)
        begin = pieces[0][0]
        for number, (_, end) in enumerate(pieces):
            last = number == len(pieces) - 1
            if last or (number + 1 in cuts and joined.count((begin, end)) >= config.least):
                spans += joined.cut((begin, end), config.tokens)
                begin = end
    return [joined.chunk(span, number, key) for number, span in enumerate(spans)]


def _cuts(joined: Joined, pieces: list[Span], config: Config, tools: ChunkTools) -> set[int]:
    """Numbers of sentences before which to cut."""
    if len(pieces) < 3:
        return set()
    vectors = embedder(tools, "semantic")([joined.text[start:end] for start, end in pieces])
    alike = []
    for at in range(1, len(pieces)):
        before = vectors[max(0, at - config.window) : at].mean(0)
        after = vectors[at : at + config.window].mean(0)
        alike.append(float(before @ after / max(float(np.linalg.norm(before) * np.linalg.norm(after)), 1e-12)))
    bound = float(np.percentile(alike, config.percentile))
    return {at for at, value in enumerate(alike, 1) if value <= bound}
