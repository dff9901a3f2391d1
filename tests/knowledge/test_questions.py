from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError, InputError
from luthier.core.score import target_of
from luthier.knowledge.questions import halves, locatable, read_questions, without_answer, write_questions
from luthier.scorers._gold import gold_of


def file_of(folder: Path, rows: Sequence[Any], name: str = "questions.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


ROWS: list[dict[str, Any]] = [
    {"id": "1", "question": "Where is Hamburg?", "answers": ["on the Elbe", "in Germany"], "context_id": "rivers"},
    {"question": "长江在哪里？", "answer": "中国", "source": ["a.md", "b.md"]},
    {"question": "Who knows?", "answers": [], "context_id": "rivers"},
    {"question": "And this?", "answerable": False},
    {"question": "Bare", "kind": "hard"},
    {"question": "Graded", "document": {"a.md": 2, "b.md": 0}},
    {"question": "As SQuAD writes it", "answers": {"text": ["yes"], "answer_start": [3]}, "context": "yes, so it is"},
]


def test_rows(tmp_path: Path) -> None:
    found = read_questions(file_of(tmp_path, ROWS))
    assert [each.text for each in found.examples] == [row["question"] for row in ROWS]
    assert found.examples[0].references == ("on the Elbe", "in Germany")
    assert found.examples[1].references == ("中国",)
    assert found.examples[6].references == ("yes",)
    assert found.examples[0].source.endswith("questions.jsonl:1")
    assert found.examples[4].meta["kind"] == "hard"
    gold = [gold_of(target_of(each)) for each in found.examples]
    assert [each is not None for each in gold] == [True, True, False, False, False, True, True]
    assert gold[5] is not None
    assert gold[5].grades == (2.0,)
    assert (locatable(found.examples), without_answer(found.examples)) == (4, 2)


def test_a_table_holds_lists_as_json(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text('question,answers,source\nWhere?,"[""here"", ""there""]",a.md\nWho?,me,\n', encoding="utf-8")
    first, second = read_questions(path).examples
    assert first.references == ("here", "there")
    assert (first.meta["source"], second.references) == ("a.md", ("me",))
    assert "source" not in second.meta


def test_what_is_written_is_read_back_with_the_same_ids(tmp_path: Path) -> None:
    found = read_questions(file_of(tmp_path, ROWS))
    again = read_questions(write_questions(found, tmp_path / "again.jsonl"))
    assert list(again.ids()) == list(found.ids())


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x"}, "question is missing"),
        ({"question": 3}, "question must be text"),
        ({"question": "x", "answers": [{}]}, r"answers\[0\]"),
        ({"question": "x", "source": 1.5}, "source must be a text, a list"),
        ({"question": "x", "document": {"a": "b"}}, "document must be"),
        ({"question": "x", "answers": "[1"}, "answers: not valid JSON"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    path = file_of(tmp_path, [ROWS[0], row])
    with pytest.raises(DataError, match=said) as refused:
        read_questions(path)
    assert "questions.jsonl:2" in refused.value.message
    assert len(read_questions(path, skip_bad=True)) == 1


def test_a_file_that_is_not_there_and_a_wrong_limit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        read_questions(tmp_path / "nothing.jsonl")
    with pytest.raises(InputError, match="limit must be at least 1"):
        read_questions(file_of(tmp_path, ROWS), limit=0)


def test_halves_never_share_a_document(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answers": ["x"], "context_id": f"doc{n % 10}"} for n in range(60)]
    found = read_questions(file_of(tmp_path, rows))
    tuning, held_out = halves(found)
    places = [{each.meta["context_id"] for each in part.examples} for part in (tuning, held_out)]
    assert not places[0] & places[1]
    assert len(tuning) + len(held_out) == 60
    assert 24 <= len(tuning) <= 36
    assert list(halves(found)[0].ids()) == list(tuning.ids())
    assert list(halves(found, seed=1)[0].ids()) != list(tuning.ids())
    with pytest.raises(InputError, match="cannot be cut into two halves"):
        halves(read_questions(file_of(tmp_path, rows[:1])))
