"""Exam questions whose four choices are shown under letters, and whose answer is a letter (mmlu, cmmlu, ceval)."""

from __future__ import annotations

from luthier.tasks._benchmark import Item
from luthier.tasks._fields import Fields, field, place, text, texts

LETTERS = ("A", "B", "C", "D")


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
