"""Cuts by the similarity of neighbours, against the equation written out."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.document import Block, Document
from luthier.core.engine import Vectors
from luthier.knowledge.chunk import chunk_document
from luthier.knowledge.chunkers._spans import ChunkTools, word_offsets
from luthier.knowledge.chunkers.semantic import similarities

BOATS = [f"Boat number {n} sails." for n in range(6)]
BREAD = [f"Loaf number {n} bakes." for n in range(6)]
MONEY = [f"第{n}号账户有利息。" for n in range(6)]


def by_subject(texts: list[str]) -> Vectors:
    """Nearly the same direction for sentences on the same subject."""
    rows = [
        [("Boat" in text) * 1.0, ("Loaf" in text) * 1.0, ("账户" in text) * 1.0, 0.05 * (len(text) % 3)]
        for text in texts
    ]
    vectors = np.asarray(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("window", [1, 2, 5])
def test_similarity_is_the_cosine_of_the_means_beside_a_place(window: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = []
    for at in range(1, 9):
        before, after = vectors[max(0, at - window) : at].mean(0), vectors[at : at + window].mean(0)
        expected.append(before @ after / np.linalg.norm(before) / np.linalg.norm(after))
    assert similarities(vectors, window) == pytest.approx(expected, abs=1e-6)


def test_cuts_are_where_the_subject_changes() -> None:
    document = Document("a", "a", "text/plain", blocks=(Block(" ".join([*BOATS, *BREAD]) + " " + "".join(MONEY)),))
    tools = ChunkTools(word_offsets, by_subject)  # type: ignore[arg-type]
    # 17 places between 18 sentences, of which the two lowest are the changes of subject
    chunks = chunk_document(document, "semantic", {"percentile": 9, "least": 0, "tokens": 300}, tools)
    assert [chunk.text for chunk in chunks] == [" ".join(BOATS), " ".join(BREAD), "".join(MONEY)]


def test_chunks_shorter_than_least_are_not_cut_off() -> None:
    document = Document("a", "a", "text/plain", blocks=(Block(" ".join([*BOATS, *BREAD[:1]])),))
    tools = ChunkTools(word_offsets, by_subject)  # type: ignore[arg-type]
    assert len(chunk_document(document, "semantic", {"percentile": 5, "least": 0}, tools)) == 2
    assert len(chunk_document(document, "semantic", {"percentile": 5, "least": 10}, tools)) == 1


def test_a_longer_stretch_on_one_subject_is_cut_at_tokens() -> None:
    document = Document("a", "a", "text/plain", blocks=(Block(" ".join(BOATS)),))
    chunks = chunk_document(document, "semantic", {"tokens": 12}, ChunkTools(word_offsets, by_subject))  # type: ignore[arg-type]
    assert all(chunk.tokens <= 12 for chunk in chunks) and len(chunks) >= 3
