"""What each step does, against what its equation or its promise says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tests.knowledge.retrievers.shelf import Judge, Shelf, Writer, embed, row, tools_for

from luthier.core.errors import InputError, UnsupportedError
from luthier.knowledge.index import Filter
from luthier.knowledge.retrievers._query import Query, harmless, lines_of
from luthier.knowledge.search import build

LINES = [
    "violin rental june",
    "violin rental july",
    "violin strings",
    "cello bow",
    "concert hall",
    "violin violin rental",
]


def ids(steps: Any, query: Query, shelf: Shelf, **more: Any) -> list[str]:
    return [hit.chunk.id for hit in build(steps, tools_for(shelf, **more))(query)]


def lines(*texts: str) -> Shelf:
    return Shelf([row(number, text) for number, text in enumerate(texts)])


# ---- rerank


def test_rerank_orders_the_candidates_and_keeps_their_scores() -> None:
    shelf = lines("violin a", "violin bb", "violin ccc", "cello dddd")
    tools = tools_for(shelf, reranker=Judge(len))
    hits = build([{"name": "rerank", "candidates": 3}, {"name": "keyword"}], tools)(Query("violin", 2))
    assert [hit.chunk.id for hit in hits] == ["c2", "c1"]  # the longest of those that keyword search found
    assert [hit.score for hit in hits] == [10.0, 9.0]
    assert hits[0].scores == {"keyword": 1.0, "rerank": 10.0}


def test_rerank_weight_blends_both_orders_scaled_to_the_list() -> None:
    shelf = lines("violin rental june", "violin rental", "violin")
    judge = Judge({"violin rental june": 0.0, "violin rental": 0.6, "violin": 1.0}.__getitem__)
    tools = tools_for(shelf, reranker=judge)
    hits = build([{"name": "rerank", "weight": 0.4}, {"name": "keyword"}], tools)(Query("violin rental june", 3))
    # words in common 3, 2, 1 -> 1, 0.5, 0
    assert [hit.score for hit in hits] == pytest.approx([0.6, 0.4 * 0.6 + 0.6 * 0.5, 0.4])
    assert [hit.chunk.id for hit in hits] == ["c0", "c1", "c2"]


@pytest.mark.parametrize(
    "judge", [Judge(fails=True), Judge(gives=[1.0]), Judge(gives=[float("nan")] * 3)], ids=["down", "few", "nan"]
)
def test_a_reranker_that_fails_leaves_the_order_and_a_note(judge: Judge) -> None:
    notes: list[dict[str, Any]] = []
    shelf = lines("violin", "violin rental june", "violin rental")
    found = ids(
        [{"name": "rerank"}, {"name": "keyword"}], Query("violin rental june", 3), shelf, reranker=judge, notes=notes
    )
    assert found == ["c1", "c2", "c0"]
    assert notes[0]["step"] == "rerank" and notes[0]["failed"]


def test_rerank_needs_a_model_that_can() -> None:
    with pytest.raises(InputError, match="reranking model"):
        ids([{"name": "rerank"}], Query("violin", 3), lines(*LINES))
    with pytest.raises(UnsupportedError, match="cannot rerank"):
        ids([{"name": "rerank"}], Query("violin", 3), lines(*LINES), reranker=Writer())


# ---- mmr


@pytest.mark.parametrize("relevance", [0.0, 0.3, 0.7, 1.0])
def test_mmr_is_the_equation(relevance: float) -> None:
    shelf, question = lines(*LINES), "violin rental"
    found = ids([{"name": "mmr", "relevance": relevance}, {"name": "dense"}], Query(question, 4), shelf)
    order = [hit.chunk.id for hit in shelf.dense(embed([question])[0], 30)]
    vectors = {each.chunk.id: embed([each.chunk.text])[0] for each in shelf.rows}
    asked, chosen = embed([question])[0], []
    while len(chosen) < 4:  # Carbonell and Goldstein 1998, written out
        worth = {
            each: relevance * float(vectors[each] @ asked)
            - (1 - relevance) * max((float(vectors[each] @ vectors[other]) for other in chosen), default=0.0)
            for each in order
            if each not in chosen
        }
        chosen.append(max(worth, key=lambda each: worth[each]))
    assert found == chosen


def test_mmr_of_relevance_1_is_the_inner_order() -> None:
    shelf = lines(*LINES)
    assert ids([{"name": "mmr", "relevance": 1}, {"name": "dense"}], Query("violin", 6), shelf) == ids(
        [{"name": "dense"}], Query("violin", 6), shelf
    )


# ---- time_decay


def test_time_decay_halves_with_each_half_life_down_to_the_floor() -> None:
    dates = {
        "now": "2026-06-01",
        "half": "2026-05-02",
        "old": "1990-01-01T00:00:00+08:00",
        "future": "2027-01-01",
        "none": "",
        "odd": "May",
    }
    shelf = Shelf([row(at, "violin", date=date, id=name) for at, (name, date) in enumerate(dates.items())])
    step = {"name": "time_decay", "half_life_days": 30, "floor": 0.1}
    hits = build([step, {"name": "keyword"}], tools_for(shelf))(Query("violin", 10))
    shares = {hit.chunk.id: hit.scores["time"] for hit in hits}
    assert shares == pytest.approx({"now": 1.0, "half": 0.5, "old": 0.1, "future": 1.0, "none": 1.0, "odd": 1.0})
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hit.chunk.id for hit in hits][-2:] == ["half", "old"]


def test_time_decay_of_negative_scores_still_prefers_the_better() -> None:
    shelf = Shelf([row(0, "violin", date="2026-06-01"), row(1, "cello", date="2026-06-01")])
    vector = -embed(["violin"])[0]
    hits = build([{"name": "time_decay"}, {"name": "dense"}], tools_for(shelf))(Query("x", 2, vector=vector))
    assert [hit.chunk.id for hit in hits] == ids([{"name": "dense"}], Query("x", 2, vector=vector), shelf)


# ---- parent, neighbours


def test_parents_are_shown_once_with_the_score_of_their_best_child() -> None:
    family = [row(at, f"violin child {at}", document="d", id=f"k{at}", parent=f"p{at // 3}") for at in range(9)]
    whole = [row(100 + at, f"whole {at}", document="d", id=f"p{at}", searched=False) for at in range(3)]
    shelf = Shelf([*family, *whole, row(50, "violin alone", id="alone")])
    hits = build([{"name": "parent"}, {"name": "keyword"}], tools_for(shelf))(Query("violin child 4", 4))
    assert sorted(hit.chunk.id for hit in hits) == ["alone", "p0", "p1", "p2"]
    assert (hits[0].chunk.id, hits[0].score, hits[0].scores) == ("p1", 3.0, {"keyword": 3.0})


def test_parent_asks_a_writer_only_once() -> None:
    family = [row(at, f"violin child {at}", document="d", id=f"k{at}", parent="p") for at in range(40)]
    shelf, writer = Shelf([*family, row(100, "whole", document="d", id="p", searched=False)]), Writer("violin child")
    ids([{"name": "parent"}, {"name": "multi_query"}], Query("violin", 4), shelf, ask=writer)
    assert len(writer.prompts) == 1


def test_neighbours_join_without_repeating_what_overlaps() -> None:
    texts = ["One two three four five.", "three four five. Six seven violin.", "Eight nine.", "Ten."]
    shelf = Shelf([row(at, text, document="d", pages=(at + 1, at + 1)) for at, text in enumerate(texts)])
    hit = build([{"name": "neighbours"}, {"name": "keyword"}], tools_for(shelf))(Query("violin", 3))[0]
    assert hit.chunk.text == "One two three four five. Six seven violin.\nEight nine."
    assert (hit.chunk.pages, hit.chunk.blocks) == ((1, 3), (0, 2))


def test_neighbours_inside_a_better_one_are_not_shown_again() -> None:
    shelf = Shelf([row(at, f"violin {at}", document="d") for at in range(6)])
    hits = build([{"name": "neighbours"}, {"name": "keyword"}], tools_for(shelf))(Query("violin 2", 6))
    assert [hit.chunk.id for hit in hits] == ["c2", "c0", "c4"]  # 1 and 3 stand in the first, 5 in the last


def test_neighbours_leave_a_parent_as_it_is() -> None:
    shelf = Shelf(
        [
            row(0, "violin", document="d", id="k", parent="p"),
            row(1, "next", document="d"),
            row(2, "The whole.", document="d", id="p", searched=False),
        ]
    )
    hits = build([{"name": "neighbours"}, {"name": "parent"}, {"name": "keyword"}], tools_for(shelf))(
        Query("violin", 1)
    )
    assert hits[0].chunk.text == "The whole."


# ---- those that write


def test_rewrite_searches_what_the_model_made_of_the_question() -> None:
    shelf = lines("the cello is in the shop", "the violin is in the shop")
    writer = Writer("Last question: Where is the violin?\nI rewrote it.")
    query = Query("Where is it?", 1, history=("Tell me of the violin.", "It is red."))
    notes: list[dict[str, Any]] = []
    assert ids([{"name": "rewrite"}, {"name": "keyword"}], query, shelf, ask=writer, notes=notes) == ["c1"]
    assert "Tell me of the violin.\nIt is red.\nLast question: Where is it?" in writer.prompts[0]
    assert notes == [{"step": "rewrite", "written": "Last question: Where is the violin?\nI rewrote it."}]


def test_rewrite_without_history_asks_nobody() -> None:
    writer = Writer("cello")
    assert ids([{"name": "rewrite"}], Query("violin", 1), lines("cello", "violin"), ask=writer) == ["c1"]
    assert writer.prompts == []


@pytest.mark.parametrize(("question", "said", "right"), [
    ("fiddle", "1. violin\n2) fiddle\n- \"violin\"", "c1"),
    ("二胡", "1、小提琴\n2、二胡", "c2"),
])  # fmt: skip
def test_multi_query_finds_by_other_words_with_one_call_each(question: str, said: str, right: str) -> None:
    calls: list[list[str]] = []

    def embedder(texts: Any) -> Any:
        calls.append(list(texts))
        return embed(texts)

    shelf, writer = lines("flute", "violin", "小提琴"), Writer(said)
    assert ids([{"name": "multi_query"}, {"name": "keyword"}], Query(question, 3), shelf, ask=writer) == [right]
    calls.clear()
    writer.prompts.clear()
    assert ids([{"name": "multi_query"}, {"name": "hybrid"}], Query(question, 3), shelf, ask=writer, embedder=embedder)
    assert (len(writer.prompts), len(calls)) == (1, 1)  # one answer of the model, one batch of the embedder
    assert len(calls[0]) == 2  # the question and what differs from it


def test_multi_query_takes_no_more_wordings_than_asked_for() -> None:
    shelf = lines("violin")
    ids(
        [{"name": "multi_query", "wordings": 2}, {"name": "keyword"}],
        Query("violin", 1),
        shelf,
        ask=Writer("a\nb\nc\nd"),
    )
    assert shelf.calls == 3


def test_step_back_adds_the_general_question_with_its_weight() -> None:
    shelf, writer = lines("violin", "instruments"), Writer("instruments")
    hits = build([{"name": "step_back", "weight": 0.5}, {"name": "keyword"}], tools_for(shelf, ask=writer))(
        Query("violin", 2)
    )
    assert {hit.chunk.id: hit.score for hit in hits} == pytest.approx({"c0": 1 / 61, "c1": 0.5 / 61})


@pytest.mark.parametrize("question", [True, False])
def test_hyde_searches_by_the_mean_of_question_and_passage(question: bool) -> None:
    shelf, passage = lines(*LINES), "strings of a violin"
    hits = build([{"name": "hyde", "question": question}, {"name": "dense"}], tools_for(shelf, ask=Writer(passage)))(
        Query("gut", 6)
    )
    vectors = embed([passage, "gut"] if question else [passage])
    mean = vectors.mean(0) / np.linalg.norm(vectors.mean(0))
    expected = {each.chunk.id: float(embed([each.chunk.text])[0] @ mean) for each in shelf.rows}
    assert {hit.chunk.id: hit.score for hit in hits} == pytest.approx(expected, abs=1e-5)


# ---- self_query


DEEDS = [
    row(0, "violin contract", date="2023-02-01", meta={"year": 2023, "kind": "contract"}),
    row(1, "violin contract", date="2024-02-01", meta={"year": 2024, "kind": ["contract", "draft"]}),
    row(2, "violin notice", date="2024-03-01", labels=["board"], meta={"year": 2024, "kind": "notice"}),
]
FIELDS = {"year": ["2023", "2024"], "kind": ["contract", "draft", "notice"]}


def deeds(said: Any, where: Filter | None = None, **options: Any) -> tuple[list[str], list[dict[str, Any]], Writer]:
    writer, notes = Writer(said if isinstance(said, str) else json.dumps(said)), []
    steps = [{"name": "self_query", **options}, {"name": "keyword"}]
    found = ids(
        steps, Query("violin of 2024", 5, where), Shelf(DEEDS), ask=writer, notes=notes, fields=lambda _: FIELDS
    )
    return sorted(found), notes, writer


def test_self_query_narrows_by_the_fields_that_documents_have() -> None:
    found, notes, writer = deeds({"query": "violin", "conditions": {"year": 2024, "kind": "draft"}})
    assert found == ["c1"]
    assert {"step": "self_query", "conditions": {"year": 2024, "kind": "draft"}, "after": "", "before": ""} in notes
    assert '- kind: "contract", "draft", "notice"' in writer.prompts[0]
    schema = json.loads(writer.samplings[0].constraint.value)  # type: ignore[union-attr]
    assert schema["properties"]["conditions"]["properties"]["year"] == {"type": "string", "enum": ["2023", "2024"]}


def test_self_query_by_dates() -> None:
    assert deeds({"query": "violin", "conditions": {}, "after": "2024-02-15", "before": "bogus"})[0] == ["c2"]
    assert deeds({"query": "violin", "conditions": {}, "after": "", "before": "2023-12-31"})[0] == ["c0"]


@pytest.mark.parametrize(
    "conditions", [{"labels": "board"}, {"year": 1999}, {"year": {"$gt": 1}}, {"kind": None}, {"": "", "source": "*"}]
)
def test_self_query_drops_conditions_that_no_document_can_fit(conditions: dict[str, Any]) -> None:
    found, notes, _ = deeds({"query": "violin", "conditions": conditions})
    assert found == ["c0", "c1", "c2"]
    assert {"step": "self_query", "dropped": conditions} in notes


def test_self_query_never_widens_what_the_caller_may_see() -> None:
    where = Filter(labels=(), meta={"year": 2023}, after="2023-01-01", before="2023-12-31")
    said = {
        "query": "violin",
        "conditions": {"year": 2024, "kind": "contract"},
        "after": "2000-01-01",
        "before": "2030-01-01",
    }
    assert deeds(said, where)[0] == ["c0"]


def test_self_query_relaxes_only_its_own_conditions() -> None:
    nothing = {"query": "violin", "conditions": {"year": 2023, "kind": "notice"}}
    assert deeds(nothing, Filter(labels=()))[0] == ["c0", "c1"]
    assert deeds(nothing, Filter(labels=()), relax=False)[0] == []


def test_self_query_names_only_the_fields_it_was_given() -> None:
    found, notes, writer = deeds(
        {"query": "violin", "conditions": {"kind": "draft"}}, fields={"year": "when it was signed"}
    )
    assert found == ["c0", "c1", "c2"]
    assert notes[-1]["dropped"] == {"kind": "draft"}
    assert (
        '- year: when it was signed; "2023", "2024"' in writer.prompts[0]
        and "kind" not in writer.prompts[0].split("- year")[1]
    )


def test_self_query_with_an_engine_without_constraints() -> None:
    writer = Writer('Sure! {"query": "violin", "conditions": {"year": "2023"}} Anything else?', parameters=())
    steps = [{"name": "self_query"}, {"name": "keyword"}]
    assert ids(steps, Query("violin", 5), Shelf(DEEDS), ask=writer, fields=lambda _: FIELDS) == ["c0"]
    assert writer.samplings[0].constraint is None


# ---- what they share


def test_lines_of_a_list() -> None:
    said = '1. One?\n 2) "Two"\n- three\n• 四\n3、五？\n（6）六\n\n***\n'
    assert lines_of(said) == ["One?", "Two", "three", "四", "五？", "六"]
    assert lines_of("1984 was a year\n3.5 litres\n10:30 in the morning") == [
        "1984 was a year",
        "3.5 litres",
        "10:30 in the morning",
    ]


def test_harmless_leaves_plain_text_alone() -> None:
    assert harmless("a < b, <b>bold</b>\n\ttab 小提琴") == "a < b, <b>bold</b>\n\ttab 小提琴"
