from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.core.errors import DataError
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "lambada"


def test_the_last_word_is_asked_for(tmp_path: Path) -> None:
    first, second = asked(tmp_path)
    assert (first.raw, first.target) == (("She put the kettle on and made some",), " tea")
    assert (second.raw, second.target) == (("one\ntwo",), " three")
    assert first.references[-1] == "tea"  # what the perplexity counts: one word


def test_a_text_of_one_word(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "word"}\n')
    with pytest.raises(DataError, match="at least two words"):
        load_task(NAME, [f"data={tmp_path}/t.jsonl"])
