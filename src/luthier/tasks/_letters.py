"""Exam questions whose four choices are shown under letters, and whose answer is a letter (mmlu, cmmlu, ceval)."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import Field

from luthier.data.fields import RowError
from luthier.tasks._benchmark import Item, ShotsConfig
from luthier.tasks._fields import Fields, field, place, text, texts

LETTERS = ("A", "B", "C", "D")


class ExamConfig(ShotsConfig):
    """``shots`` come from the subject's dev part (the paper's five; lm-evaluation-harness asks none unless told). ``subjects`` asks only
    these."""

    shots: int = Field(default=5, ge=0, le=64)
    subjects: tuple[str, ...] = ()


def read_exam(row: Fields, ask: str, subjects: Collection[str]) -> Item:
    """As ``read_letters``, of a benchmark whose ``subjects`` are known. Raises RowError for another one."""
    item = read_letters(row, ask)
    if item.group not in subjects:
        raise RowError(f"subject {item.group!r} is none of the {len(subjects)} subjects")
    return item


def read_letters(row: Fields, ask: str) -> Item:
    """A row of ``question``, ``choices`` (or one field for each letter) and ``answer`` (a letter, or an index from 0), with its ``subject``.

    ``ask`` stands after the choices ("Answer:").
    """
    question = text(row, "question", "Question").strip()
    given = row.get("choices")
    choices = tuple(text(row, letter) for letter in LETTERS) if given is None else texts(given, "choices", count=4)
    right = place(field(row, "answer", "Answer"), "answer", LETTERS)
    lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    return Item(
        text=f"{question}\n{lines}\n{ask}",
        answer=LETTERS[right],
        choices=LETTERS,
        correct=(right,),
        group=text(row, "subject"),
        meta=row,
    )
