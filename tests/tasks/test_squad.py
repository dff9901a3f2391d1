from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.core.errors import DataError
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "squad"


def test_the_prompt_to_the_letter(tmp_path: Path) -> None:
    first, second = asked(tmp_path)[:2]
    assert first.raw == (
        "Title: Lighthouse\n\nBackground: The lighthouse was built in 1800 by Ole Dahl.\n\nQuestion: When was it built?\n\nAnswer:",
    )
    assert (first.target, first.references, first.meta["answerable"]) == ("1800", ("1800", "in 1800"), "yes")
    assert (second.target, second.references, second.meta["answerable"]) == ("", ("",), "no")
    assert asked(tmp_path, "accept_unanswerable=true")[1].references == ("", "unanswerable")


def test_worked_examples_say_unanswerable(tmp_path: Path) -> None:
    shown = {e.raw[0] for e in asked(tmp_path, "shots=4")}
    assert all("\n\nAnswer: " in text for text in shown) and any("Answer: unanswerable\n\n" in text for text in shown)


def test_the_published_json_and_a_corpus_beside_the_questions(tmp_path: Path) -> None:
    import json

    questions = [
        {
            "id": "1",
            "question": "When was it built?",
            "answers": [{"text": "1800", "answer_start": 1}, {"text": "in 1800"}],
        }
    ]
    context = "The lighthouse was built in 1800 by Ole Dahl."
    nested = {
        "version": "2.0",
        "data": [{"title": "Lighthouse", "paragraphs": [{"context": context, "qas": questions}]}],
    }
    (tmp_path / "dev-v2.0.json").write_text(json.dumps(nested))
    (published,) = load_task(NAME, [f"data={tmp_path}/dev-v2.0.json"]).examples("test")
    apart = tmp_path / "apart"
    apart.mkdir()
    (apart / "corpus.jsonl").write_text(json.dumps({"id": "c1", "title": "Lighthouse", "text": context}) + "\n")
    (apart / "validation.jsonl").write_text(
        json.dumps({"id": "1", "question": "When was it built?", "answers": ["1800", "in 1800"], "context_id": "c1"})
        + "\n"
    )
    (joined,) = load_task(NAME, [f"data={apart}"]).examples("test")
    flat = asked(tmp_path)[0]
    assert published.raw == joined.raw == flat.raw and published.references == joined.references == flat.references
    (apart / "validation.jsonl").write_text('{"question": "q", "answers": [], "context_id": "c9"}\n')
    with pytest.raises(DataError, match=r"validation\.jsonl:1: context_id 'c9' is not in the corpus"):
        load_task(NAME, [f"data={apart}"])
    (apart / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"there is no corpus\.jsonl"):
        load_task(NAME, [f"data={apart}"])
    (tmp_path / "bad.json").write_text('{"data": [{"title": "t", "paragraphs": [{"context": "c"}]}]}')
    with pytest.raises(DataError, match=r"paragraphs\[0\] must be an object with context and qas"):
        load_task(NAME, [f"data={tmp_path}/bad.json"])
