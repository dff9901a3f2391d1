from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.core.errors import DataError
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "hellaswag"


def test_the_prompt_to_the_letter(tmp_path: Path) -> None:
    first, second, _ = asked(tmp_path)
    # marks in brackets go, [title] becomes a full stop, ctx_b begins with a capital letter
    assert first.raw == ("Baking bread: A baker takes loaf 0 out of the oven.",)
    assert second.raw == ("Baking bread: A baker takes loaf 1 out of the oven. Then she",)
    assert first.choices == (" puts it on a rack.. Done 0", " throws it at the moon.", " eats the oven.", " sings.")
    assert second.correct == (1,)


def test_a_question_is_never_its_own_worked_example(tmp_path: Path) -> None:
    folder = rows.write(tmp_path, NAME)
    (folder / "train.jsonl").write_text((folder / "validation.jsonl").read_text())
    for example in load_task(NAME, [f"data={folder}", "shots=2"]).examples("test"):
        question = example.messages[-1].content
        assert example.raw[0].count(question) == 1, example.raw
    with pytest.raises(DataError, match="shots is 3, and the train part has 3 rows"):
        load_task(NAME, [f"data={folder}", "shots=3"])
