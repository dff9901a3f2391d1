from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import InputError
from luthier.tasks._load import load_task


def test_a_file_a_path_and_a_task_are_all_tasks(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"row {i},{'ab'[i % 2]}\n" for i in range(20)))
    path = tmp_path / "mine.yml"
    path.write_text("data: rows.csv\n")
    task = load_task(path)
    assert task.name == "mine"
    assert load_task(str(path)).digest == task.digest
    assert load_task(task) is task
    assert load_task(path, ["max_new_tokens=3"]).max_new_tokens == 3


def test_what_is_no_task_is_named() -> None:
    with pytest.raises(InputError, match="there is no 'mmluu'"):
        load_task("mmluu")
    with pytest.raises(InputError, match=r"no such file: nowhere\.yaml"):
        load_task("nowhere.yaml")
