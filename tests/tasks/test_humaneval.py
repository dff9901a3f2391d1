from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.core.errors import InputError
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "humaneval"


def test_the_program_begins_the_prompt_and_tests_come_along(tmp_path: Path) -> None:
    (one,) = asked(tmp_path)
    assert one.raw == (rows.FILES[NAME]["test"][0]["prompt"],)
    assert one.meta["entry_point"] == "twice" and "check" in one.meta["test"]


def test_one_program_or_several(tmp_path: Path) -> None:
    folder = rows.write(tmp_path, NAME)
    one = load_task(NAME, [f"data={folder}"])
    assert (one.samples, one.temperature, one.max_new_tokens) == (1, 0.0, 1024)
    assert one.stop == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    several = load_task(NAME, [f"data={folder}", "samples=4", "k=[1, 4]"])
    assert (several.samples, several.temperature) == (4, 0.2)
    assert [options["as"] for _, options in several.scorers] == ["pass@1", "pass@4"]
    with pytest.raises(InputError, match="k must be numbers from 1 to samples"):
        load_task(NAME, [f"data={folder}", "samples=4", "k=[5]"])


def test_a_turn_asks_for_the_whole_program(tmp_path: Path) -> None:
    (one,) = asked(tmp_path, "chat=true")
    assert one.messages[-1].content.startswith(
        "Write a solution to the following problem and make sure that it passes the tests:\n```python\ndef twice"
    )


def test_a_right_program_passes_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    from luthier.evaluation.loop import scorers_of, target_of
    from luthier.scorers._score import Answer

    task = load_task(NAME, [f"data={rows.write(tmp_path, NAME)}"])
    target, scorer = target_of(task.examples("test")[0]), scorers_of(task)[0]
    assert scorer.entry(Answer("    return 2 * x\n"), target, scorer.config).value == 1.0
    assert scorer.entry(Answer("    return x\n"), target, scorer.config).value == 0.0
