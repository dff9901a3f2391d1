from __future__ import annotations

from pathlib import Path

from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "ceval"


def test_the_prompt_to_the_letter(tmp_path: Path) -> None:
    first = asked(tmp_path, "shots=1")[0]
    assert first.raw == (
        "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n"
        "第10题选几？\nA. 10\nB. 11\nC. 12\nD. 13\n答案： C\n\n"
        "第0题选几？\nA. 0\nB. 1\nC. 2\nD. 3\n答案：",
    )
    assert first.source.endswith("val.jsonl:1")
