from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.core.errors import DataError
from luthier.core.message import Message
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "mbpp"


TWO = (
    "You are an expert Python programmer, and here is your task: Write a function that adds 2. Your code should pass these tests:\n\n"
    "assert add(0) == 2\nassert add(1) == 3\nassert add(2) == 4\n[BEGIN]\ndef add(x):\r\n  return x + 2\n[DONE]\n\n"
)


def test_the_prompt_to_the_letter(tmp_path: Path) -> None:
    first, second = asked(tmp_path)
    assert first.raw[0].startswith(TWO) and first.raw[0].count("[BEGIN]") == 4
    assert first.raw[0].endswith(
        "adds 11. Your code should pass these tests:\n\nassert add(0) == 11\nassert add(1) == 12\nassert add(2) == 13\n[BEGIN]\n"
    )
    assert second.meta["task_id"] == 12  # 1 is shown to nobody, 601 is for training


def test_parts_of_the_one_published_file(tmp_path: Path) -> None:
    assert [e.meta["task_id"] for e in asked(tmp_path, "split=train")] == [601]
    assert [e.meta["task_id"] for e in asked(tmp_path, "split=prompt", "shots=0")] == [2, 3, 4, 5]


def test_turns_hold_code_blocks(tmp_path: Path) -> None:
    first = asked(tmp_path, "chat=true", "shots=1")[0]
    assert first.messages[1] == Message("assistant", "```python\ndef add(x):\r\n  return x + 2\n```")


def test_too_few_assertions(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"task_id": 11, "text": "t", "code": "c", "test_list": ["assert 1"]}\n')
    with pytest.raises(DataError, match="test_list must hold at least 3; got 1"):
        load_task(NAME, [f"data={tmp_path}/m.jsonl", "shots=0"])
