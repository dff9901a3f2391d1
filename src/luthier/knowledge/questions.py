"""Questions with what answers them, to measure searches and answers by: one a row of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.digest import digest_json
from luthier.core.errors import InputError
from luthier.core.message import user
from luthier.core.score import target_of
from luthier.data.fields import RowError, answer, nothing, parsed, shown, text
from luthier.data.files import bare_name, rows_of
from luthier.data.read import convert_rows
from luthier.scorers._gold import NAMES, gold_of, unanswerable

_JSON = ("[", "{")


def read_questions(path: str | Path, *, limit: int | None = None, skip_bad: bool = False) -> Dataset:
    """The questions of a JSON Lines, JSON, CSV, TSV or Parquet file.

    A row has ``question`` and any of ``answers`` (a list) or ``answer``, ``answerable`` (false: the documents do not say), and where the
    answer is: ``context_id``, ``document`` or ``source`` (a path or its end, a file name with or without its suffix, a title), ``chunk`` (an id)
    or ``context`` (the passage), each one text, a list, or a mapping to grades (in CSV as JSON). An empty list of answers is a question that
    has none. Other fields are kept as they are.

    Raises DataError that lists the rows which cannot be used (with ``skip_bad`` they are left out), InputError for a wrong ``limit``.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1; got {limit}")
    path = Path(path).expanduser()
    rows = ((str(path), line, row) for line, row in rows_of(path))
    made, problems = convert_rows(rows, _question, skip_bad=skip_bad, limit=limit)
    examples = tuple(replace(example, source=source) for source, example in made)
    return Dataset(bare_name(path), "question", examples, "question_gold", tuple(problems))


def halves(questions: Dataset, share: float = 0.5, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Questions to choose by and questions to prove by; those about one document stay together, so that neither tells of the other.

    Raises InputError when there are too few documents or questions to cut.
    """
    import numpy as np

    groups: dict[str, list[Example]] = {}
    for number, example in enumerate(questions.examples):
        place = next((str(example.meta[name]) for name in NAMES if example.meta.get(name)), f"question {number}")
        groups.setdefault(place, []).append(example)
    names = sorted(groups)
    if len(names) < 2:
        raise InputError(f"{len(questions)} questions about {len(names)} document cannot be cut into two halves")
    order = np.random.default_rng(seed).permutation(len(names))
    first: set[str] = set()
    size = 0
    for place in order[:-1]:
        if first and size >= share * len(questions):
            break
        first.add(names[place])
        size += len(groups[names[place]])
    chosen = {example.id for name in first for example in groups[name]}
    parts = [tuple(e for e in questions.examples if (e.id in chosen) == inside) for inside in (True, False)]
    if not all(parts):
        raise InputError("equal questions stand for different documents, so that they cannot be cut into two halves")
    return (
        replace(questions, name=f"{questions.name}-tuning", examples=parts[0]),
        replace(questions, name=f"{questions.name}-held-out", examples=parts[1]),
    )


def splits_of(questions: Dataset) -> Splits:
    """All of them as the test split."""
    nothing_there = replace(questions, examples=(), problems=())
    return Splits(nothing_there, nothing_there, questions)


def locatable(questions: Sequence[Example]) -> int:
    """How many say what a search should find."""
    return sum(gold_of(target_of(example)) is not None for example in questions)


def without_answer(questions: Sequence[Example]) -> int:
    """How many the documents do not answer."""
    return sum(unanswerable(target_of(example)) for example in questions)


def _question(given: Mapping[str, Any]) -> Example:
    row = {key: value for key, value in given.items() if not nothing(value) and value != ""}
    if "question" not in row:
        raise RowError(f"question is missing; the row has {', '.join(map(str, given)) or 'no fields'}")
    asked = text(dict(row), "question")
    for name in ("answers", *NAMES):
        value = row.get(name)
        if isinstance(value, str) and value.lstrip().startswith(_JSON):
            row[name] = parsed(value, name)
    accepted = _accepted(row)
    for name in NAMES:
        _check_place(row.get(name), name)
    row_id = digest_json({key: value for key, value in row.items() if key != "id"})[:25]
    target = accepted[0] if accepted else ""
    meta = {key: value for key, value in row.items() if key != "question"}
    return Example(row_id, user(asked), target, references=tuple(accepted), meta=meta)


def _accepted(row: dict[str, Any]) -> list[str]:
    told = row.get("answers", row.get("answer"))
    if isinstance(told, Mapping):  # SQuAD: {"text": [...], "answer_start": [...]}
        told = row["answers"] = told.get("text")
    if told is None:
        return []
    listed = told if isinstance(told, list) else [told]
    return [answer(each, f"answers[{at}]") for at, each in enumerate(listed)]


def _check_place(value: Any, name: str) -> None:
    if value is None or isinstance(value, str | int):
        return
    if isinstance(value, Mapping):
        good = all(isinstance(grade, int | float) and grade >= 0 for grade in value.values())
    else:
        good = isinstance(value, list) and all(isinstance(each, str | int) for each in value)
    if not good:
        raise RowError(f"{name} must be a text, a list of texts, or a mapping of texts to grades; got {shown(value)}")


def write_questions(questions: Dataset, path: Path) -> Path:
    """Write rows that ``read_questions`` reads back with the same ids."""
    from luthier.store.home import write_atomic

    rows = ({"question": each.text, **each.meta} for each in questions.examples)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path
