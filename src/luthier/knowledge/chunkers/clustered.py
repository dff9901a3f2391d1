"""Sentences on one subject together, wherever they stand: k-means over their embeddings, with the sentences around them."""

from __future__ import annotations

import itertools
import math

import numpy as np
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Chunk, Document
from luthier.knowledge.chunkers._need import embedder
from luthier.knowledge.chunkers._spans import ChunkTools, Joined, Span, key_of


class Config(EntryConfig):
    """``tokens`` a chunk at most; the number of clusters is what that needs. ``neighbours`` sentences on each side of a member are kept with it.

    ``seed`` of k-means.
    """

    tokens: int = Field(default=200, ge=8)
    neighbours: int = Field(default=1, ge=0)
    seed: int = 0


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """A chunk for each cluster (several for a large one), its sentences in the document's order. Raises InputError without an embedder."""
    joined = Joined(document, tools)
    key = key_of("clustered", config.model_dump())
    starts = joined.sentences
    pieces = [joined.trim((start, end)) for start, end in itertools.pairwise(starts)]
    pieces = [piece for piece in pieces if piece[1] > piece[0]]
    out: list[Chunk] = []
    for members in _clusters(joined, pieces, config, tools):
        for group in _fitting(joined, pieces, members, config.tokens):
            text = _text(joined, pieces, group)
            span = (pieces[group[0]][0], pieces[group[-1]][1])
            if joined.count(pieces[group[0]]) > config.tokens:
                out += [joined.chunk(each, len(out) + n, key) for n, each in enumerate(joined.cut(span, config.tokens))]
            else:
                out.append(joined.chunk(span, len(out), key, text=text))
    return out


def _clusters(joined: Joined, pieces: list[Span], config: Config, tools: ChunkTools) -> list[list[int]]:
    """The sentences of each cluster with their neighbours, in order; clusters by their first sentence."""
    total = sum(joined.count(piece) for piece in pieces)
    count = min(len(pieces), max(1, math.ceil(total / config.tokens)))
    if count < 2:
        return [list(range(len(pieces)))] if pieces else []
    from sklearn.cluster import KMeans

    vectors = embedder(tools, "clustered")([joined.text[start:end] for start, end in pieces])
    found = KMeans(n_clusters=count, n_init=4, random_state=config.seed).fit_predict(np.asarray(vectors))
    clusters = []
    for number in range(count):
        members = {
            near
            for at in np.flatnonzero(found == number).tolist()
            for near in range(max(0, at - config.neighbours), min(len(pieces), at + config.neighbours + 1))
        }
        if members:
            clusters.append(sorted(members))
    return sorted(clusters)


def _fitting(joined: Joined, pieces: list[Span], members: list[int], most: int) -> list[list[int]]:
    groups: list[list[int]] = [[]]
    size = 0
    for member in members:
        tokens = joined.count(pieces[member])
        if groups[-1] and size + tokens > most:
            groups.append([])
            size = 0
        groups[-1].append(member)
        size += tokens
    return [group for group in groups if group]


def _text(joined: Joined, pieces: list[Span], group: list[int]) -> str:
    """Sentences; ones that do not follow one another in the document are set apart by dots."""
    out = ""
    for before, member in zip([None, *group], group, strict=False):
        start, end = pieces[member]
        if before is not None:
            out += joined.text[pieces[before][1] : start] if member == before + 1 else " … "
        out += joined.text[start:end]
    return out
