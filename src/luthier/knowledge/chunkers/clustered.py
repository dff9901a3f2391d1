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

    ``seed`` of k-means (Lloyd 1982, begun as k-means++). Of a long document each ``stretch`` of sentences is clustered by itself, so
    that the time grows with its length and not with its square.
    """

    tokens: int = Field(default=200, ge=8)
    neighbours: int = Field(default=1, ge=0)
    seed: int = 0
    stretch: int = Field(default=2000, ge=10)


def chunk(document: Document, config: Config, tools: ChunkTools) -> list[Chunk]:
    """A chunk for each cluster (several for a large one), its sentences in the document's order. Raises InputError without an embedder."""
    joined = Joined(document, tools)
    key = key_of("clustered", config.model_dump())
    found = (joined.trim(span) for span in itertools.pairwise(joined.sentences))
    pieces = [piece for piece in found if piece[1] > piece[0]]
    out: list[Chunk] = []
    for start in range(0, len(pieces), config.stretch):
        part = pieces[start : start + config.stretch]
        for members in _clusters(joined, part, config, tools):
            for group in _fitting(joined, part, members, config.tokens):
                span = (part[group[0]][0], part[group[-1]][1])
                if len(group) == 1:
                    for cut in joined.fit(span, config.tokens):
                        out.append(joined.chunk(cut, len(out), key))
                else:
                    out.append(joined.chunk(span, len(out), key, text=_text(joined, part, group)))
    return out


def _clusters(joined: Joined, pieces: list[Span], config: Config, tools: ChunkTools) -> list[list[int]]:
    """The sentences of each cluster with their neighbours, in order; clusters by their first sentence."""
    total = sum(joined.count(piece) for piece in pieces)
    count = min(len(pieces), max(1, math.ceil(total / config.tokens)))
    if count < 2:
        return [list(range(len(pieces)))]
    from sklearn.cluster import KMeans

    vectors = np.asarray(embedder(tools, "clustered")([joined.text[start:end] for start, end in pieces]))
    count = min(count, len(np.unique(vectors, axis=0)))  # sentences that are the same are one point
    found = KMeans(n_clusters=count, n_init=4, random_state=config.seed).fit_predict(vectors)
    clusters = []
    for number in range(count):
        members = {
            near
            for at in np.flatnonzero(found == number).tolist()
            for near in range(max(0, at - config.neighbours), min(len(pieces), at + config.neighbours + 1))
        }
        clusters.append(sorted(members))
    return sorted(each for each in clusters if each)


def _fitting(joined: Joined, pieces: list[Span], members: list[int], most: int) -> list[list[int]]:
    """Members in groups whose texts have at most ``most`` tokens; one that has more is alone."""
    groups: list[list[int]] = []
    for member in members:
        if groups and joined.size(_text(joined, pieces, [*groups[-1], member])) <= most:
            groups[-1].append(member)
        else:
            groups.append([member])
    return groups


def _text(joined: Joined, pieces: list[Span], group: list[int]) -> str:
    """Sentences; ones that do not follow one another in the document are set apart by dots."""
    out = ""
    for before, member in zip([None, *group], group, strict=False):
        start, end = pieces[member]
        if before is not None:
            out += joined.text[pieces[before][1] : start] if member == before + 1 else " … "
        out += joined.text[start:end]
    return out
