from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import DataError, InputError
from luthier.core.message import Message
from luthier.core.task import PromptTemplate
from luthier.evaluation.parity_prompts import built_in, from_file, from_records
from luthier.evaluation.records import Record


def test_built_in_prompts_hold_what_tokenizers_get_wrong() -> None:
    cases = built_in(32)
    assert len({case.prompt for case in cases}) == 32 and len({case.name for case in cases}) == 32
    text = "".join(m.content for case in cases for m in case.prompt)
    assert all(piece in text for piece in ("<|im_end|>", "我", "🙂", "\t", "  Two", "naïve"))
    assert {m.role for case in cases for m in case.prompt} == {"system", "user", "assistant"}
    assert all(case.answer and case.prompt[-1].role == "user" for case in cases)
    with pytest.raises(InputError, match="between 1 and 32"):
        built_in(33)


def test_with_a_template_they_are_asked_as_the_task_asks() -> None:
    template = PromptTemplate("Sort: {labels}", "Text: {input}", ("a", "b"))
    first, shot = built_in(17, template)[0], built_in(17, template)[16]
    assert first.prompt == template.messages("What is the capital of France?")
    assert [m.role for m in shot.prompt] == ["system", "user", "assistant", "user"]


def test_rows_of_every_kind(tmp_path: Path) -> None:
    def cases(rows: str) -> list[tuple[int, str, str]]:
        (tmp_path / "rows.jsonl").write_text(rows)
        return [(len(c.prompt), c.prompt[-1].content, c.answer) for c in from_file(tmp_path / "rows.jsonl", 2)]

    turns = '{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}'
    assert cases(f'{{"messages": [{turns}, {turns}]}}\n') == [(3, "q", "a")]
    assert cases('{"text": "t", "label": "x"}\n' * 3) == [(1, "t", "x")] * 2
    assert cases('{"prompt": "p", "chosen": "good", "rejected": "bad"}\n') == [(1, "p", "good")]
    assert cases('{"text": "only text"}\n') == [(1, "only text", "")]
    with pytest.raises(DataError, match="no such file"):
        from_file(tmp_path / "none.jsonl", 2)


def test_the_inputs_of_an_evaluation() -> None:
    records = [Record(i, str(i), "", f"input {i}", "yes", "no") for i in range(20)]
    assert [c.name for c in from_records(records, most=2)] == ["example 1", "example 2"]
    assert from_records(records)[3].prompt == (Message("user", "input 3"),)
