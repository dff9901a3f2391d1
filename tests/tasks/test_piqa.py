from __future__ import annotations

from pathlib import Path

from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "piqa"


def test_the_prompt_to_the_letter(tmp_path: Path) -> None:
    second = asked(tmp_path)[1]
    assert second.raw == ("Question: Open jar 1\nAnswer:",)
    assert (second.choices, second.correct) == ((" Turn the lid.", " Paint the lid blue."), (1,))
