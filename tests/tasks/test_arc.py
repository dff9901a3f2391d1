from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.core.errors import DataError
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "arc"


def test_the_prompt_to_the_letter(tmp_path: Path) -> None:
    first = asked(tmp_path)[0]
    assert first.raw == ("Question: What melts at 0 degrees?\nAnswer:",)
    assert (first.choices, first.correct) == ((" wax 0", " stone", " iron and steel"), (0,))


def test_worked_examples_are_drawn_as_in_the_harness(tmp_path: Path) -> None:
    # random.Random(1234).sample(range(5), 2) gives 3, 0 for the first question and goes on from there
    first = asked(tmp_path, "shots=2")[0]
    assert first.raw == (
        "Question: What melts at 13 degrees?\nAnswer: stone\n\n"
        "Question: What melts at 10 degrees?\nAnswer: stone\n\n"
        "Question: What melts at 0 degrees?\nAnswer:",
    )


def test_the_published_form_nests_the_question_and_lies_in_folders(tmp_path: Path) -> None:
    place = tmp_path / "ARC-Easy"
    place.mkdir()
    (place / "ARC-Easy-Test.jsonl").write_text(
        '{"id": "1", "question": {"stem": "Why?", "choices": [{"text": "So.", "label": "A"}, {"text": "No.", "label": "B"}]}, '
        '"answerKey": "B"}\n'
    )
    task = load_task(NAME, [f"data={tmp_path}", "level=easy"])
    assert task.name == "arc_easy"
    assert task.examples("test")[0].raw == ("Question: Why?\nAnswer:",)
    assert task.examples("test")[0].target == " No."
    with pytest.raises(DataError, match="has no test file; it holds: ARC-Easy"):
        load_task(NAME, [f"data={tmp_path}", "level=challenge"])
