from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "boolq"


def test_the_prompt_to_the_letter(tmp_path: Path) -> None:
    second = asked(tmp_path)[1]
    assert second.raw == ("Boat 1 is made of wood.\nQuestion: is boat 1 made of wood?\nAnswer:",)
    assert (second.choices, second.target) == ((" no", " yes"), " yes")


@pytest.mark.parametrize("answer", ["true", '"True"', "1"])
def test_labels_in_any_of_their_forms(tmp_path: Path, answer: str) -> None:
    place = tmp_path / "dev.jsonl"
    place.write_text(f'{{"question": "q", "passage": "p", "answer": {answer}}}\n')
    assert load_task(NAME, [f"data={tmp_path}"]).examples("test")[0].target == " yes"
