from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.core.errors import DataError
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "ifeval"


def test_the_prompt_as_it_is_and_the_instructions_beside(tmp_path: Path) -> None:
    (one,) = asked(tmp_path)
    assert one.raw == ("Write a poem without commas.",)
    assert one.meta["instruction_id_list"] == ["punctuation:no_comma"] and one.meta["kwargs"] == [{}]


def test_four_figures_and_a_long_answer(tmp_path: Path) -> None:
    task = load_task(NAME, [f"data={rows.write(tmp_path, NAME)}"])
    assert [options["as"] for _, options in task.scorers] == [
        "prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose",
    ]  # fmt: skip
    assert (task.max_new_tokens, task.stop) == (1280, ())


def test_one_object_for_each_instruction(tmp_path: Path) -> None:
    (tmp_path / "i.jsonl").write_text('{"prompt": "p", "instruction_id_list": ["a:b"], "kwargs": []}\n')
    with pytest.raises(DataError, match="kwargs must be a list of 1 objects"):
        load_task(NAME, [f"data={tmp_path}/i.jsonl"])
