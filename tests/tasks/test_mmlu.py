from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.core.errors import DataError, InputError
from luthier.core.message import Message
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "mmlu"


ANATOMY = "The following are multiple choice questions (with answers) about anatomy.\n\n"
SHOTS = (
    "Which number is 10?\nA. 7\nB. 8\nC. 9\nD. 10\nAnswer: D\n\n"
    "Which number is 11?\nA. 11\nB. 12\nC. 13\nD. 14\nAnswer: A\n\n"
)


def test_the_prompt_to_the_letter(tmp_path: Path) -> None:
    first, _, policy, _ = asked(tmp_path)
    assert first.raw == (ANATOMY + SHOTS + "Which number is 0?\nA. -3\nB. -2\nC. -1\nD. 0\nAnswer:",)
    assert (first.choices, first.correct, first.target) == ((" A", " B", " C", " D"), (3,), " D")
    assert first.meta["subject"] == "anatomy" and first.source.endswith("test.jsonl:1")
    assert policy.raw[0].startswith(
        "The following are multiple choice questions (with answers) about us foreign policy.\n\nWhich number is 20?"
    )


def test_no_shots_and_one_subject(tmp_path: Path) -> None:
    found = asked(tmp_path, "shots=0", "subjects=[us_foreign_policy]", "limit=1")
    assert [e.meta["subject"] for e in found] == ["us_foreign_policy"]
    assert found[0].raw[0].count("Answer:") == 1
    with pytest.raises(InputError, match=r"no subject 'anatomi'\. Did you mean 'anatomy'"):
        asked(tmp_path, "subjects=[anatomi]")
    with pytest.raises(InputError, match="has no subject 'virology'; it has: anatomy, us_foreign_policy"):
        asked(tmp_path, "subjects=[virology]")


def test_limit_counts_for_each_subject_as_in_the_harness(tmp_path: Path) -> None:
    assert [e.meta["subject"] for e in asked(tmp_path, "limit=1")] == ["anatomy", "us_foreign_policy"]


def test_turns(tmp_path: Path) -> None:
    first = asked(tmp_path, "chat=true", "shots=1")[0]
    assert first.messages == (
        Message("system", ANATOMY),
        Message("user", "Which number is 10?\nA. 7\nB. 8\nC. 9\nD. 10\nAnswer:"),
        Message("assistant", "D"),
        Message("user", "Which number is 0?\nA. -3\nB. -2\nC. -1\nD. 0\nAnswer:"),
    )
    assert first.choices == ("A", "B", "C", "D") and first.target == "D"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            '{"choices": ["a", "b", "c", "d"], "answer": 0, "subject": "anatomy"}',
            "question .also called Question. is missing",
        ),
        ('{"question": "q", "choices": ["a", "b"], "answer": 0, "subject": "x"}', "choices must hold 4; got 2"),
        ('{"question": "q", "choices": "abcd", "answer": 0, "subject": "x"}', 'choices must be a list; got "abcd"'),
        (
            '{"question": "q", "choices": ["a", "b", "c", "d"], "answer": 4, "subject": "x"}',
            "or a number from 0 to 3; got 4",
        ),
        (
            '{"question": "q", "choices": ["a", "b", "c", "d"], "answer": "E", "subject": "x"}',
            "must be one of A, B, C, D",
        ),
        ('{"question": "q", "choices": ["a", "b", "c", "d"], "answer": true, "subject": "x"}', "got true"),
        (
            '{"question": 3.5, "choices": ["a", "b", "c", {}], "answer": 0, "subject": "x"}',
            r"choices\[3\] must be text",
        ),
        ('{"question": "q", "choices": ["a", "b", "c", "d"], "answer": 0}', "subject is missing"),
        ("{", "invalid JSON"),
    ],
)
def test_a_broken_row_is_named_and_can_be_left_out(tmp_path: Path, row: str, reason: str) -> None:
    rows.write(tmp_path, NAME)
    path = tmp_path / "test.jsonl"
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(DataError, match=rf"test.jsonl:5: .*{reason}"):
        load_task(NAME, [f"data={tmp_path}", "shots=0"])
    task = load_task(NAME, [f"data={tmp_path}", "shots=0", "skip_bad=true"])
    assert len(task.examples("test")) == 4 and len(task.splits.test.problems) == 1
