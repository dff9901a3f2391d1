"""The two ways to fuse, against their equations worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.knowledge.retrievers.shelf import Shelf, row, tools_for

from luthier.core.document import Chunk, Hit
from luthier.core.errors import InputError
from luthier.knowledge.retrievers._fusion import by_rank, by_score
from luthier.knowledge.retrievers._query import Query
from luthier.knowledge.search import build


def hits(by: str, scores: Sequence[tuple[str, float]]) -> list[Hit]:
    return [Hit(Chunk(each, each, 0, (0, 0)), each, each, score=score, scores={by: score}) for each, score in scores]


def test_by_rank_is_reciprocal_rank_fusion() -> None:
    near, words = hits("dense", [("a", 0.9), ("b", 0.8)]), hits("keyword", [("b", 7.0), ("c", 5.0)])
    found = by_rank([near, words], [1.0, 0.5], 3, constant=60)
    expected = {"a": 1 / 61, "b": 1 / 62 + 0.5 / 61, "c": 0.5 / 62}
    assert [hit.chunk.id for hit in found] == sorted(expected, key=lambda each: -expected[each])
    assert {hit.chunk.id: hit.score for hit in found} == pytest.approx(expected)
    assert found[0].scores == {"dense": 0.8, "keyword": 7.0}  # what both lists said of it


def test_by_score_adds_similarity_and_share_of_the_highest_bm25() -> None:
    near, words = hits("dense", [("a", 0.9), ("b", 0.5)]), hits("keyword", [("b", 8.0), ("c", 4.0)])
    found = by_score(near, words, 1.0, 1.0, 3)
    expected = {"b": (0.5 + 1.0) / 2, "c": (0.5 + 0.5) / 2, "a": (0.9 + 0.0) / 2}
    assert [hit.chunk.id for hit in found] == ["b", "c", "a"]
    assert {hit.chunk.id: hit.score for hit in found} == pytest.approx(expected)


def test_by_score_with_weights() -> None:
    near, words = hits("dense", [("a", 0.9), ("b", 0.5)]), hits("keyword", [("b", 8.0)])
    found = by_score(near, words, 3.0, 1.0, 2)
    assert [hit.chunk.id for hit in found] == ["a", "b"]
    assert [hit.score for hit in found] == pytest.approx([0.675, 0.625])


def test_where_all_similarities_are_alike_the_words_decide() -> None:
    """An embedding model that does not know the language: rank fusion is misled, score fusion is not."""
    near = hits("dense", [(each, 0.801 - 0.001 * at) for at, each in enumerate("xyzab")])
    words = hits("keyword", [("a", 12.0), ("x", 3.0)])
    assert by_score(near, words, 1.0, 1.0, 1)[0].chunk.id == "a"
    assert by_rank([near, words], [1.0, 1.0], 1)[0].chunk.id == "x"


def test_empty_lists() -> None:
    words = hits("keyword", [("a", 2.0), ("b", 1.0)])
    assert [hit.chunk.id for hit in by_score([], words, 1.0, 1.0, 5)] == ["a", "b"]
    assert [hit.chunk.id for hit in by_score(words, [], 1.0, 1.0, 5)] == ["a", "b"]
    assert by_score([], [], 1.0, 1.0, 5) == by_rank([[], []], [1.0, 1.0], 5) == []


def test_a_weight_of_0_leaves_that_search_out() -> None:
    rows = [row(0, "violin violin"), row(1, "violin cello"), row(2, "flute")]
    for weight, other in (("dense", "keyword"), ("keyword", "dense")):
        shelf = Shelf(rows)
        found = build([{"name": "hybrid", weight: 0}], tools_for(shelf))(Query("violin", 5))
        alone = build([{"name": other}], tools_for(Shelf(rows)))(Query("violin", 5))
        assert shelf.calls == 1
        assert [hit.chunk.id for hit in found] == [hit.chunk.id for hit in alone]


def test_some_weight_is_needed() -> None:
    with pytest.raises(InputError, match="must not both be 0"):
        build([{"name": "hybrid", "dense": 0, "keyword": 0}], tools_for(Shelf([])))
