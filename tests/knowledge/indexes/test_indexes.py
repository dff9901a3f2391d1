"""What every index of the catalogue does."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.knowledge.indexes.conftest import WIDTH, OpenIndex, row, unit

from luthier.core.errors import InputError
from luthier.knowledge.index import Filter, IndexRow

HOSTILE = (
    "plain",
    "it's",
    'say "hi"',
    "100%",
    "a_b",
    "back\\slash",
    "two\nlines",
    "'; DROP TABLE chunks; --",
    "' OR '1'='1",
    "中文文档.pdf",
    "包裹'第一章\n%",
    "[1]*?.txt",
    "=x",
    "",
    " ",
    "e\u0301",
    "😀",
)
texts = st.one_of(
    st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
)


def test_rows_come_back_as_they_went_in(opened: OpenIndex) -> None:
    index = opened()
    kept = row(
        3, "Prices of 包裹 'quoted'\n\ttab", source="/a b/价格.xlsx", title="Prices", labels=("team",), date="2026-01-02T03:04:05+00:00",
        meta={"year": 2026, "tags": ["a", "b"]}, headings=("One", "二"), pages=(2, 4), place="sheet Prices!A1", tokens=9, parent="p", context="About prices.",
    )  # fmt: skip
    index.add([kept])
    hit = index.get(["c3"])[0]
    assert hit.chunk == kept.chunk
    assert (hit.document, hit.source, hit.title) == ("doc", "/a b/价格.xlsx", "Prices")
    assert hit.meta == {"year": 2026, "tags": ["a", "b"], "date": "2026-01-02T03:04:05+00:00"}
    assert index.dense(unit(3), 1)[0].chunk == index.keyword("prices", 1)[0].chunk == kept.chunk


def test_added_replaced_removed(opened: OpenIndex) -> None:
    index = opened()
    index.add([])
    index.add([row(n, document=f"doc{n % 2}") for n in range(6)])
    assert index.count() == 6 and sorted(index.documents()) == ["doc0", "doc1"]
    index.add([row(1, "changed"), row(2, "first"), row(2, "last"), row(9)])
    assert index.count() == 7
    assert [hit.chunk.text for hit in index.get(["c2", "nobody", "c1"])] == ["last", "changed"]
    assert index.get([]) == []
    index.remove([])
    index.remove(["doc0", "nobody"])
    assert sorted(hit.chunk.id for hit in index.dense(unit(0), 20)) == ["c1", "c2", "c3", "c5", "c9"]
    assert index.keyword("4", 5) == []
    assert index.documents() == ["doc", "doc1"] or index.documents() == ["doc1", "doc"]


def test_chunks_of_a_document_and_its_neighbours(opened: OpenIndex) -> None:
    index = opened()
    index.add([row(n, document="it's") for n in (4, 2, 0, 1, 3)] + [row(10, document="other")])
    assert [hit.chunk.number for hit in index.of_document("it's")] == [0, 1, 2, 3, 4]
    assert [hit.chunk.number for hit in index.of_document("it's", 1, 3)] == [1, 2, 3]
    assert [hit.chunk.number for hit in index.of_document("it's", 3)] == [3, 4]
    assert index.of_document("nobody") == []


def test_empty_index(opened: OpenIndex) -> None:
    index = opened()
    where = Filter(labels=("a",), sources=("*",), meta={"a": 1}, after="2020")
    assert index.dense(unit(0), 5) == index.keyword("word", 5) == index.dense(unit(0), 5, where) == []
    assert index.of_document("doc") == index.get(["c1"]) == index.documents() == []
    assert index.count() == index.approximate() == 0
    index.remove(["doc"])
    index.optimize()


def test_rows_without_vectors_are_kept_but_not_searched(opened: OpenIndex) -> None:
    index = opened()
    index.add([row(0, "parent words", searched=False, vector=None), row(1, "child words")])
    index.add([row(2, "later parent words", searched=False, vector=None)])
    assert [hit.chunk.id for hit in index.dense(unit(1), 5)] == ["c1"]
    assert [hit.chunk.id for hit in index.dense(unit(1), 5, Filter(labels=()))] == ["c1"]
    assert [hit.chunk.id for hit in index.keyword("words", 5)] == ["c1"]
    assert [hit.chunk.searched for hit in index.get(["c0", "c1", "c2"])] == [False, True, False]
    assert [hit.chunk.id for hit in index.of_document("doc")] == ["c0", "c1", "c2"]


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2", "hamming"])
def test_metrics_against_numpy(opened: OpenIndex, metric: str) -> None:
    index = opened(metric=metric)
    lengths = 1.0 if metric in ("cosine", "hamming") else np.linspace(0.5, 2.0, 40, dtype=np.float32)[:, None]
    vectors = np.stack([unit(n) for n in range(40)]) * lengths
    index.add([row(n, vector=vectors[n]) for n in range(40)])
    query = unit(99)
    want = {
        "cosine": vectors @ query,
        "dot": vectors @ query,
        "l2": 1 / (1 + np.linalg.norm(vectors - query, axis=1)),
        "hamming": ((vectors > 0) == (query > 0)).mean(axis=1),
    }[metric]
    for exact in (False, True):
        found = index.dense(query, 40, exact=exact)
        scores = [hit.score for hit in found]
        assert scores == sorted(scores, reverse=True)
        assert np.allclose(scores, [want[hit.chunk.number] for hit in found], atol=1e-5)
        assert sorted(hit.chunk.number for hit in found) == list(range(40))
        assert all(hit.scores == {"dense": hit.score} for hit in found)


def test_binary_vectors_are_compared_again_with_the_whole_ones(opened: OpenIndex) -> None:
    index = opened(metric="hamming", rescore=True, refine=4)
    vectors = np.stack([unit(n) for n in range(60)])
    index.add([row(n) for n in range(60)])
    query = unit(99)
    cosine, bits = vectors @ query, ((vectors > 0) == (query > 0)).mean(axis=1)
    found = index.dense(query, 5)
    assert np.allclose([hit.score for hit in found], [cosine[hit.chunk.number] for hit in found], atol=2e-3)
    worst = np.sort(bits)[::-1][19]  # 4 x 5 candidates
    assert all(bits[hit.chunk.number] >= worst for hit in found)
    sure = [n for n in np.argsort(-cosine) if bits[n] > worst][:1]
    assert set(sure) <= {hit.chunk.number for hit in found}
    exact = index.dense(query, 5, exact=True)
    assert [hit.chunk.number for hit in exact] == np.argsort(-cosine)[:5].tolist()


def test_rescore_needs_binary_vectors(opened: OpenIndex) -> None:
    with pytest.raises(InputError, match="rescore"):
        opened(rescore=True)


def test_a_width_that_is_no_multiple_of_eight(opened: OpenIndex) -> None:
    index = opened(width=11, metric="hamming")
    vectors = {n: unit(n, 11) for n in range(5)}
    index.add([row(n, vector=vectors[n]) for n in range(5)])
    found = index.dense(vectors[3], 5)
    assert (found[0].chunk.number, found[0].score) == (3, pytest.approx(1.0))
    for hit in found:
        assert hit.score == pytest.approx(((vectors[hit.chunk.number] > 0) == (vectors[3] > 0)).mean(), abs=1e-6)


def test_wrong_vectors_are_refused(opened: OpenIndex) -> None:
    index = opened()
    with pytest.raises(InputError, match="16 dimensions"):
        index.add([row(0), row(1, vector=np.ones(15, np.float32))])
    with pytest.raises(InputError, match="finite"):
        index.add([row(0, vector=np.full(WIDTH, np.nan, np.float32))])
    assert index.count() == 0
    index.add([row(0)])
    with pytest.raises(InputError, match="16 dimensions"):
        index.dense(np.ones(17, np.float32), 3)
    with pytest.raises(InputError, match="finite"):
        index.dense(np.full(WIDTH, np.inf, np.float32), 3)


def bm25(
    query: list[str], documents: list[list[str]], average: float | None, k1: float = 1.2, b: float = 0.75
) -> list[float]:
    """Robertson and Zaragoza 2009, with the idf that is never negative; ``average`` length as given, or the documents' own."""
    mean = average or sum(map(len, documents)) / len(documents)
    containing = Counter(word for words in documents for word in set(words))
    out = []
    for words in documents:
        counts, score = Counter(words), 0.0
        for word in query:
            idf = math.log(1 + (len(documents) - containing[word] + 0.5) / (containing[word] + 0.5))
            score += idf * counts[word] * (k1 + 1) / (counts[word] + k1 * (1 - b + b * len(words) / mean))
        out.append(score)
    return out


ENGLISH = ["apple", "river", "stone", "cloud", "violin", "parcel", "window", "garden", "copper", "lemon"]
CHINESE = [
    "包裹",
    "合同",
    "电池",
    "老师",
    "音乐",
    "北京",
    "苹果",
    "天气",
    "银行",
    "医院",
]  # words whose characters occur in no other


@pytest.mark.parametrize(("vocabulary", "space"), [(ENGLISH, " "), (CHINESE, ",")])
def test_keyword_ranks_as_bm25(opened: OpenIndex, entry: str, vocabulary: list[str], space: str) -> None:
    index = opened()
    rng = np.random.default_rng(5)
    weights = np.arange(1, 11) / 55
    documents = [list(rng.choice(vocabulary, rng.integers(3, 30), p=weights)) for _ in range(60)]
    for start in range(0, 60, 20):  # several additions: the statistics are of all of them
        index.add([row(n, space.join(documents[n])) for n in range(start, start + 20)])
    index.optimize()
    average = {"lancedb": None}.get(entry, 100.0 if vocabulary is ENGLISH else 100 / 3)
    for query in (vocabulary[:1], vocabulary[2:4], vocabulary[:5], [vocabulary[0], vocabulary[9]]):
        want = bm25(query, documents, average)
        found = index.keyword(space.join(query), 60)
        assert {hit.chunk.number for hit in found} == {n for n, score in enumerate(want) if score > 0}
        ranked = [want[hit.chunk.number] for hit in found]
        assert all(one >= next_one * 0.97 for one, next_one in itertools.pairwise(ranked))
        assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


def test_words_of_english_and_chinese(opened: OpenIndex) -> None:
    index = opened()
    index.add(
        [
            row(0, "The foxes were running past the café."),
            row(1, "我的包裹还没有到,请帮我查一下。"),
            row(2, "蓝牙耳机的保修期是两年"),
            row(3, "Model XR-500, 230 V"),
        ]
    )
    for question, number in (("Fox", 0), ("RUN", 0), ("cafe", 0), ("包裹在哪里", 1), ("保修期多久", 2), ("xr 500", 3)):
        assert index.keyword(question, 3)[0].chunk.number == number, question
    assert (
        index.keyword("elephant", 3)
        == index.keyword("大象", 3)
        == index.keyword("?!", 3)
        == index.keyword(" ", 3)
        == []
    )


def test_stemming_can_be_left_out(opened: OpenIndex) -> None:
    index = opened(stem=False)
    index.add([row(0, "foxes"), row(1, "fox")])
    assert [hit.chunk.number for hit in index.keyword("fox", 5)] == [1]


filters = st.builds(
    Filter,
    labels=st.none() | st.lists(texts, max_size=2).map(tuple),
    documents=st.lists(texts, max_size=2).map(tuple),
    sources=st.lists(st.one_of(texts, texts.map(lambda t: f"*{t}"), texts.map(lambda t: f"?{t[1:]}*")), max_size=2).map(
        tuple
    ),
    meta=st.dictionaries(
        st.sampled_from(["k", "中", "a'b"]), st.one_of(texts, st.integers(0, 2), st.booleans()), max_size=1
    ),
    after=st.sampled_from(["", "2026-01", "2026-02-01", "2027"]),
    before=st.sampled_from(["", "2026-01", "2026-02-01", "2027"]),
)
rows_strategy = st.lists(
    st.tuples(
        texts, texts, st.lists(texts, max_size=2), st.sampled_from(["", "2026-01-15", "2026-02-01", "2026-02-01T10:00:00+00:00"]),
        st.dictionaries(st.sampled_from(["k", "中", "a'b"]), st.one_of(texts, st.integers(0, 2), st.booleans(), st.lists(texts, max_size=2), st.none()), max_size=2),
    ),
    min_size=1,
    max_size=8,
)  # fmt: skip


def test_filters_are_those_of_allows(opened: OpenIndex) -> None:
    index = opened()
    number = 0

    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(rows_strategy, st.lists(filters, min_size=1, max_size=6))
    def check(values: list[tuple[str, str, list[str], str, dict[str, object]]], wanted: list[Filter]) -> None:
        nonlocal number
        rows = []
        for document, source, labels, date, meta in values:
            number += 1
            made = row(number, "word", document=document, source=source, labels=tuple(labels), date=date, meta=meta)
            rows.append(made)
        index.remove(index.documents())
        index.add(rows)
        near = [
            Filter(documents=(rows[0].document,)), Filter(sources=(rows[0].source,)), Filter(labels=rows[0].labels[:1]),
            Filter(meta={name: value for name, value in rows[0].meta.items() if isinstance(value, str | int)}),
        ]  # fmt: skip
        for where in [*wanted, *near]:
            want = {each.chunk.id for each in rows if where.allows(each)}
            assert {hit.chunk.id for hit in index.dense(unit(1), 50, where)} == want, where
            assert {hit.chunk.id for hit in index.keyword("word", 50, where)} == want, where

    check()


def test_what_a_filter_allows() -> None:
    kept: IndexRow = row(
        0, source="/docs/a[1].pdf", labels=("hr",), date="2026-02-01", meta={"year": 2026, "tags": ["x", "y"]}
    )
    public = replace(kept, labels=())
    assert Filter().allows(kept) and not Filter(labels=()).allows(kept) and Filter(labels=()).allows(public)
    assert Filter(labels=("hr", "it")).allows(kept) and not Filter(labels=("it",)).allows(kept)
    assert Filter(sources=("*/a[1].pdf",)).allows(kept) and not Filter(sources=("*/a1.pdf",)).allows(kept)
    assert Filter(sources=("nothing", "/docs/?[1].*")).allows(kept) and not Filter(sources=("/docs",)).allows(kept)
    assert Filter(meta={"year": 2026, "tags": "y"}).allows(kept) and not Filter(meta={"tags": "z"}).allows(kept)
    assert Filter(after="2026-02-01", before="2026-02-01").allows(kept) and not Filter(after="2026-02-02").allows(kept)
    assert not Filter(before="2027").allows(replace(kept, date="")) and not Filter(after="2020").allows(
        replace(kept, date="")
    )


def test_reopened(opened: OpenIndex) -> None:
    index = opened()
    index.add([row(n, f"word{n}") for n in range(5)])
    index.optimize()
    index.close()
    index.close()
    again = opened()
    assert again.count() == 5
    assert again.dense(unit(3), 1)[0].chunk.id == again.keyword("word3", 1)[0].chunk.id == "c3"
    again.add([row(7, "word7")])
    assert again.keyword("word7", 1)[0].chunk.id == "c7"


def test_two_indexes_have_rows_of_their_own(opened: OpenIndex) -> None:
    one, two = opened("one"), opened("two")
    one.add([row(0, "here")])
    assert two.count() == 0 and two.keyword("here", 1) == []


def test_moved_to_another_folder(opened: OpenIndex, tmp_path: object) -> None:
    """A rebuilt index takes the place of the old one by renaming its folder."""
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    index = opened("index.new")
    index.add([row(0, "here")])
    index.close()
    (tmp_path / "index.new").rename(tmp_path / "index")
    assert opened("index").keyword("here", 1)[0].chunk.id == "c0"
