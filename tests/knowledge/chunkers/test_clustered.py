"""Clusters of sentences, against what scikit-learn finds."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from tests.knowledge.chunkers.test_semantic import BOATS, BREAD, by_subject

from luthier.core.document import Block, Document
from luthier.knowledge.chunk import chunk_document
from luthier.knowledge.chunkers._spans import ChunkTools, word_offsets

MIXED = [sentence for pair in zip(BOATS, BREAD, strict=True) for sentence in pair]
TOOLS = ChunkTools(word_offsets, by_subject)  # type: ignore[arg-type]


def document_of(sentences: list[str]) -> Document:
    return Document("a", "a", "text/plain", blocks=(Block(" ".join(sentences)),))


def test_sentences_on_one_subject_come_together_as_scikit_learn_has_them() -> None:
    document = document_of(MIXED)
    chunks = chunk_document(document, "clustered", {"tokens": 40, "neighbours": 0}, TOOLS)  # 60 tokens: two clusters
    ours = [next(n for n, chunk in enumerate(chunks) if sentence in chunk.text) for sentence in MIXED]
    theirs = KMeans(n_clusters=2, n_init=10, random_state=1).fit_predict(np.asarray(by_subject(MIXED)))
    assert adjusted_rand_score(theirs, ours) == 1.0
    assert [chunk.text for chunk in chunks] == [" … ".join(BOATS), " … ".join(BREAD)]
    assert [chunk.number for chunk in chunks] == [0, 1]


def test_neighbours_are_kept_with_a_member() -> None:
    sentences = [*BOATS[:3], BREAD[0], *BOATS[3:]]
    chunks = chunk_document(document_of(sentences), "clustered", {"tokens": 20, "neighbours": 1}, TOOLS)
    bread = [chunk.text for chunk in chunks if BREAD[0] in chunk.text]
    assert any(f"{BOATS[2]} {BREAD[0]} {BOATS[3]}" in text for text in bread)


def test_each_stretch_is_clustered_by_itself() -> None:
    sentences = [f"Boat number {n} sails." if n % 2 else f"Loaf number {n} bakes." for n in range(60)]
    options = {"tokens": 60, "neighbours": 0, "stretch": 20}
    chunks = chunk_document(document_of(sentences), "clustered", options, TOOLS)
    for chunk in chunks:
        numbers = [int(word) for word in chunk.text.split() if word.isdigit()]
        assert min(numbers) // 20 == max(numbers) // 20


def test_sentences_that_are_all_the_same() -> None:
    chunks = chunk_document(document_of(["Boat sails."] * 30), "clustered", {"tokens": 24, "neighbours": 0}, TOOLS)
    assert sum(chunk.text.count("Boat") for chunk in chunks) == 30
