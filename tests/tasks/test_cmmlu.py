from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.core.errors import DataError, InputError
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "cmmlu"


def test_the_prompt_to_the_letter(tmp_path: Path) -> None:
    first = asked(tmp_path, "shots=1")[0]
    assert first.raw == (
        "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\n"
        "第10题选几？\nA. 10\nB. 11\nC. 12\nD. 13\n答案： C\n\n"
        "第0题选几？\nA. 0\nB. 1\nC. 2\nD. 3\n答案：",
    )
    assert (first.choices, first.correct) == ((" A", " B", " C", " D"), (0,))


def test_simple_rows_are_asked_in_the_same_way(tmp_path: Path) -> None:
    published = asked(tmp_path, "shots=0")[0]
    place = tmp_path / "simple.jsonl"
    place.write_text(
        '{"question": "第0题选几？", "choices": ["0", "1", "2", "3"], "answer": 0, "subject": "anatomy"}\n'
    )
    simple = load_task(NAME, [f"data={place}", "shots=0"]).examples("test")[0]
    assert (simple.raw, simple.choices, simple.correct) == (published.raw, published.choices, published.correct)


def test_a_folder_of_tables_by_subject(tmp_path: Path) -> None:
    for part, line in (("dev", "一,1,2,3,4,B"), ("test", "二,5,6,7,8,D")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "arts.csv").write_text(f"Question,A,B,C,D,Answer\n{line}\n")
    (found,) = load_task(NAME, [f"data={tmp_path}", "shots=1"]).examples("test")
    assert (
        found.raw[0].startswith("以下是关于艺术学的") and "一\nA. 1\nB. 2\nC. 3\nD. 4\n答案： B\n\n二" in found.raw[0]
    )


def test_what_it_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shots is 5, and the dev part of anatomy has 3 rows"):
        asked(tmp_path, "shots=5")
    one = rows.write(tmp_path, NAME) / "test.jsonl"
    with pytest.raises(InputError, match="shots is 5, and data is one file"):
        load_task(NAME, [f"data={one}"])
    one.write_text(one.read_text().replace("anatomy", "cooking"))
    with pytest.raises(DataError, match="subject 'cooking' is none of the 67 subjects"):
        load_task(NAME, [f"data={one}", "shots=0"])
    with pytest.raises(InputError, match="data is one file"):
        load_task(NAME, [f"data={one}", "shots=0", "split=test"])
