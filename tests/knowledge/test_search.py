"""Searches of a real base: a fake embedder, LanceDB, chains of steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.knowledge.retrievers.shelf import Judge, Writer

from luthier.core.errors import InputError, NotFoundError
from luthier.engines._open import open_engine
from luthier.knowledge.base import KnowledgeBase, create_base
from luthier.knowledge.index import Filter
from luthier.knowledge.search import MOST_STEPS, check_retrieval
from luthier.store.database import open_store

TEXTS = {
    "violin.txt": "The violin rental ends in June.",
    "cello.txt": "A cello is rented by the month.",
    "会议.txt": "小提琴的租期在六月结束。",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KnowledgeBase]:
    root = tmp_path_factory.mktemp("search")
    store = open_store(root / "home")
    made = create_base("shop", embedder="fake", store=store, engine=open_engine(store, "fake", "auto", None))
    with made:
        for name, text in TEXTS.items():
            (root / name).write_text(text, encoding="utf-8")
            made.add([root / name], labels=["board"] if name == "cello.txt" else [], meta={"kind": name.split(".")[0]})
        yield made


def names(hits: Any) -> list[str]:
    return [Path(hit.source).name for hit in hits]


def test_the_default_finds_by_words_in_both_languages(base: KnowledgeBase) -> None:
    assert names(base.search("violin rental", 1)) == ["violin.txt"]
    assert names(base.search("租期什么时候结束?", 1)) == ["会议.txt"]


def test_without_a_last_step_hybrid_is_it(base: KnowledgeBase) -> None:
    hits = base.search("violin rental", 3, retrieval=[{"name": "rerank"}], reranker=Judge(len))  # type: ignore[arg-type]
    assert set(hits[0].scores) >= {"dense", "rerank"}
    assert names(base.search("violin rental", 3, retrieval=[])) == names(base.search("violin rental", 3))


@pytest.mark.parametrize("k", [0, -1, 1001])
def test_k_has_bounds(base: KnowledgeBase, k: int) -> None:
    with pytest.raises(InputError, match="k must be 1 to 1000"):
        base.search("violin", k)


@pytest.mark.parametrize("question", ["", " \n\t", "\u3000"])
def test_an_empty_question_is_refused(base: KnowledgeBase, question: str) -> None:
    with pytest.raises(InputError, match="question must not be empty"):
        base.search(question)


@pytest.mark.parametrize(
    "question",
    ["' OR 1=1 --", '"', "violin AND (", "\ud83c violin", "a" * 100_000, "*:*", "\x00violin", "+-&|!(){}[]^~?:\\/"],
)
def test_questions_are_never_syntax(base: KnowledgeBase, question: str) -> None:
    assert len(base.search(question, 3)) <= 3


WRONG: list[tuple[Any, str]] = [
    ([{"nam": "dense"}], "step 1 needs a name"),
    (["dense"], "step 1 needs a name"),
    ([{"name": 3}], "step 1 needs a name"),
    ([{"name": "mmr"}, {}], "step 2 needs a name"),
    ([{"name": "hybrid"}, {"name": "mmr"}], "hybrid asks the index itself"),
    ([{"name": "dense"}, {"name": "keyword"}], "dense asks the index itself"),
    ([{"name": "mmr"}] * (MOST_STEPS + 1), f"at most {MOST_STEPS} steps; got {MOST_STEPS + 1}"),
    ({"name": "mmr"}, "must be a list"),
    ("mmr", "must be a list"),
    ([{"name": "mmr", "relevance": 2}], "relevance"),
    ([{"name": "rerank", "candidates": 10**9}], "candidates"),
    ([{"name": "hybrid", "dense": float("nan")}], "dense"),
    ([{"name": "time_decay", "half_life_days": 0}], "half_life_days"),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "said"), WRONG, ids=range(len(WRONG)))
def test_wrong_steps_are_refused_by_check_and_search_alike(base: KnowledgeBase, steps: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_retrieval(steps)
    with pytest.raises(InputError, match=said):
        base.search("violin", retrieval=steps)


def test_an_unknown_step_names_the_near_one() -> None:
    with pytest.raises(NotFoundError, match="rerank"):
        check_retrieval([{"name": "rerenk"}])


def test_labels_hold_for_every_step(base: KnowledgeBase) -> None:
    steps = [{"name": "neighbours"}, {"name": "mmr"}, {"name": "hybrid"}]
    assert "cello.txt" in names(base.search("cello", 5, retrieval=steps))
    assert "cello.txt" not in names(base.search("cello", 5, Filter(labels=("staff",)), retrieval=steps))


def test_self_query_knows_the_fields_of_the_documents_that_the_caller_may_see(base: KnowledgeBase) -> None:
    base.ask = Writer('{"query": "rental", "conditions": {"kind": "violin"}}')  # type: ignore[assignment]
    steps: list[dict[str, Any]] = [{"name": "self_query"}]
    try:
        assert names(base.search("the rental of violins", 5, retrieval=steps)) == ["violin.txt"]
        assert '"cello"' in base.ask.prompts[-1]  # type: ignore[attr-defined]
        base.search("the rental of violins", 5, Filter(labels=()), retrieval=steps)
        assert '"cello"' not in base.ask.prompts[-1]  # type: ignore[attr-defined]
    finally:
        base.ask = None


def test_notes_say_what_the_steps_did(base: KnowledgeBase) -> None:
    notes: list[dict[str, Any]] = []
    base.ask = Writer(fails=True)  # type: ignore[assignment]
    try:
        assert names(base.search("violin rental", 1, retrieval=[{"name": "multi_query"}], notes=notes)) == [
            "violin.txt"
        ]
    finally:
        base.ask = None
    assert notes == [{"step": "multi_query", "failed": "the writer is down"}]
