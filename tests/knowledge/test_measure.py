"""Searches and answers measured on a small base in two languages; embedder and model are made up, the figures are worked out here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.core.errors import InputError, MismatchError
from luthier.engines.fake import Config, FakeEngine
from luthier.evaluation.compare import compare
from luthier.evaluation.picture import write_page
from luthier.knowledge.base import KnowledgeBase, create_base
from luthier.knowledge.measure import Asking, measure
from luthier.store.runs import list_runs

TEXTS = {
    "elbe.md": "The Elbe flows through Dresden and Hamburg.",
    "rhine.md": "The Rhine flows through Basel and Cologne.",
    "brahms.md": "Brahms was born in Hamburg in 1833.",
    "长江.md": "长江是亚洲最长的河流。",
    "黄河.md": "黄河流经兰州和济南。",
}
ROWS = [
    {"question": "Which towns does the Elbe flow through?", "answers": ["Dresden and Hamburg"], "context_id": "elbe"},
    {"question": "When was Brahms born in Hamburg?", "answers": ["1833"], "context_id": "brahms"},
    {"question": "亚洲最长的河流是什么？", "answers": ["长江"], "context_id": "长江"},
    {"question": "黄河流经哪里？", "answers": ["兰州"], "context_id": "黄河"},
    {"question": "Who founded Atlantis?", "answers": [], "context_id": "rhine"},
]


@pytest.fixture
def base(home: Path, tmp_path: Path) -> Iterator[KnowledgeBase]:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    with create_base("rivers", embedder="fake", engine=FakeEngine("fake", Config())) as made:
        made.add([folder])
        yield made


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return path


KEYWORD = [{"name": "keyword"}]


def test_searches(base: KnowledgeBase, questions: Path) -> None:
    found = measure(base, questions, k=(1, 3), retrieval=KEYWORD)
    assert found.primary == "recall@3"
    assert found.scores["recall@1"]["value"] == 1.0  # words of each question stand in one text
    assert found.scores["mrr@3"]["value"] == 1.0
    assert found.scores["precision@3"]["value"] == pytest.approx(1 / 3)
    assert found.counts["unscored"] == 1  # the question without an answer
    assert 0 < found.latency["p50_s"] <= found.latency["p99_s"]
    assert found.latency["requests"] == len(ROWS)
    first = found.records[0]
    assert first.hits[0]["source"].endswith("elbe.md")
    assert first.answer.startswith("elbe")
    assert {run.kind for run in list_runs(base.store)} == {"eval"}


def test_an_unchanged_base_is_not_asked_twice_and_a_changed_one_is(
    base: KnowledgeBase, questions: Path, tmp_path: Path
) -> None:
    first = measure(base, questions, retrieval=KEYWORD)
    assert measure(base, questions, retrieval=KEYWORD).run.id == first.run.id
    assert measure(base, questions, retrieval=[{"name": "dense"}]).run.id != first.run.id
    (tmp_path / "more.md").write_text("Brahms was born. Brahms was born in Hamburg.", encoding="utf-8")
    base.add([tmp_path / "more.md"])
    again = measure(base, questions, retrieval=KEYWORD)
    assert again.run.id != first.run.id
    assert again.scores["recall@1"]["value"] < 1.0


def test_two_searches_are_compared_in_pairs(base: KnowledgeBase, questions: Path) -> None:
    runs = [measure(base, questions, k=(1,), retrieval=steps).run.id for steps in (KEYWORD, [{"name": "dense"}])]
    found = compare(*runs, store=base.store)
    assert found.examples == len(ROWS)
    assert found.scorer == "recall@1"
    assert found.low <= found.difference <= found.high
    other = measure(base, questions, k=(1,), retrieval=KEYWORD, limit=2).run.id
    with pytest.raises(MismatchError, match="did not answer the same examples"):
        compare(runs[0], other, store=base.store)


def test_answers(base: KnowledgeBase, questions: Path) -> None:
    said = {
        "Elbe": "The Elbe flows through Dresden and Hamburg [1].",
        "Brahms": "In 1700 [1].",
        "亚洲": "长江是亚洲最长的河流[1]。",
        "黄河": "文档中没有相关内容。",
        "Atlantis": "This is not in the documents.",
    }
    model = FakeEngine("writer", Config(answers=said))
    found = measure(base, questions, retrieval=KEYWORD, asking=Asking(model, passages=2, judge="fake"))
    value = {name: score["value"] for name, score in found.scores.items()}
    assert found.primary == "token_f1"
    assert value["abstention_all"] == pytest.approx(4 / 5)
    assert value["abstention_unanswerable"] == 1.0
    assert value["abstention_answerable"] == pytest.approx(3 / 4)
    assert value["citation_gold"] == 1.0
    assert value["squad_exact"] == pytest.approx(1 / 5)  # the refusal is the right answer to the last
    assert value["lexical_support"] < 1.0  # of 1700 no passage says anything
    assert {"faithfulness", "answer_relevance", "recall@1"} <= set(value)
    brahms = next(record for record in found.records if "Brahms" in record.input)
    assert brahms.citations == (brahms.hits[0]["id"],)


def test_answers_of_another_state_of_the_base_are_not_reused(
    base: KnowledgeBase, questions: Path, tmp_path: Path
) -> None:
    asking = Asking(FakeEngine("writer", Config(answers={"": "Yes."})))
    first = measure(base, questions, asking=asking)
    assert measure(base, questions, asking=asking).run.id == first.run.id
    (tmp_path / "more.md").write_text("Something new.", encoding="utf-8")
    base.add([tmp_path / "more.md"])
    assert measure(base, questions, asking=asking).run.id != first.run.id


def test_questions_that_say_nothing_are_refused(base: KnowledgeBase, tmp_path: Path) -> None:
    path = tmp_path / "bare.jsonl"
    path.write_text('{"question": "Why?"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="no question says what a search should find"):
        measure(base, path)


@pytest.mark.parametrize("k", [(), (0,), (1, 5000)])
def test_wrong_k(base: KnowledgeBase, questions: Path, k: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="k must be numbers from 1"):
        measure(base, questions, k=k)


def test_a_step_that_needs_a_model_is_refused_before_the_first_question(base: KnowledgeBase, questions: Path) -> None:
    with pytest.raises(InputError, match="rerank"):
        measure(base, questions, retrieval=[{"name": "rerank"}, *KEYWORD])
    assert list_runs(base.store) == []


def test_the_page(base: KnowledgeBase, questions: Path, tmp_path: Path) -> None:
    page = write_page(measure(base, questions, retrieval=KEYWORD), tmp_path / "page.html").read_text(encoding="utf-8")
    for text in ("kb:rivers on questions", "recall@5", "Where the first right passage stands", "not found", "<svg"):
        assert text in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
