from __future__ import annotations

import random
from pathlib import Path

from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "openbookqa"


def test_the_prompt_to_the_letter(tmp_path: Path) -> None:
    first = asked(tmp_path)[0]
    assert first.raw == ("What melts at 0 degrees?",)
    assert (first.choices, first.correct) == ((" wax 0", " stone", " iron and steel"), (0,))
    shown = asked(tmp_path, "shots=1")[0].raw[0]
    drawn = random.Random(1234).sample(range(5), 1)[0] + 10
    answer = [f"wax {drawn}", "stone", "iron and steel"][drawn % 3]
    assert shown == f"What melts at {drawn} degrees? {answer}\n\nWhat melts at 0 degrees?"
