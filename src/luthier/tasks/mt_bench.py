"""MT-Bench: 80 questions of eight kinds, each with a second one that builds on the answer; a judge grades both turns (Zheng et al., 2023).

Prompt: the first question as a user turn; for the second turn the model's own first answer and the second question follow. No worked
examples, greedy (the paper draws some categories at a temperature). Scorer: judge, from 1 to 10, with the reference answers where there are
some. Results are also shown by category and by turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import InputError
from luthier.core.task import Task
from luthier.data.files import Row, rows_of
from luthier.tasks._benchmark import Benchmark, Item, build_task
from luthier.tasks._fields import Fields, field, text, texts
from luthier.tasks._parts import is_file, is_hub
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Zheng et al. (2023), Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena, arXiv:2306.05685",
    licence="Apache-2.0",
    fields="question_id, category, turns (2), reference (for some); references also as reference_gpt4.jsonl (question_id, turns) beside",
    hub="hub:HuggingFaceH4/mt_bench_prompts",
)
REFERENCES = ("reference_gpt4.jsonl", "reference.jsonl", "reference_answer/gpt-4.jsonl")


class Config(EntryConfig):
    """``judge``: the model that grades, as ``luthier eval`` names one (better a stronger one than those that are graded). ``rubric`` is a name
    of the prompt catalogue or a text; left out, the judge's own. ``limit`` counts questions."""

    data: str = ""
    judge: str = ""
    rubric: str = ""
    limit: int | None = Field(default=None, ge=1)
    skip_bad: bool = False
    max_new_tokens: int = Field(default=1024, ge=1)


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    references = _references(config.data)
    told: dict[str, Any] = {"rubric": config.rubric} if config.rubric else {}
    return Benchmark(
        name="mt_bench",
        kind="generate",
        source=SOURCE,
        read=lambda row: _read(row, references),
        scorers=(("judge", {"judge": config.judge, "reference": True, **told}),),
        part="train" if is_hub(config.data) else "questions",
        max_new_tokens=config.max_new_tokens,
        slices=("category", "turn"),
        expand=_turns,
        in_turns=True,
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    if config.data and not config.judge:
        raise InputError(
            "mt_bench needs judge: the model that grades the answers",
            hint="for example judge=openai:MODEL@http://HOST/v1, or a stored model",
        )
    return build_task(define(config), config)


def _turns(rows: Iterable[tuple[str, int, Row]]) -> Iterator[tuple[str, int, Row]]:
    """Each question twice: its first turn, and both."""
    for file, line, row in rows:
        if isinstance(row, Mapping):
            yield file, line, {**row, "turn": 1}
            yield file, line, {**row, "turn": 2}
        else:
            yield file, line, row


def _read(row: Fields, references: Mapping[str, list[str]]) -> Item:
    turns = texts(field(row, "turns", "prompt"), "turns", count=2)
    name = text(row, "question_id", "prompt_id")
    second = row["turn"] == 2
    given = row.get("reference") or references.get(name) or ()
    answers = texts(given, "reference", least=0)
    reference = answers[0] if answers else ""
    if second and len(answers) > 1:
        reference = f"{answers[0]}\n\nUser: {turns[1]}\n\nAssistant: {answers[1]}"
    return Item(
        turns[0],
        target=reference,
        group=f"turn {row['turn']}",
        meta={
            "question_id": name,
            "category": text(row, "category"),
            "turn": str(row["turn"]),
            **({"then": [turns[1]]} if second else {}),
        },
    )


def _references(data: str) -> dict[str, list[str]]:
    """Reference answers by question, from the file beside the questions; FastChat's own form has them under choices."""
    if not data or is_hub(data):
        return {}
    folder = Path(data).expanduser()
    folder = folder.parent if is_file(data) else folder
    for name in REFERENCES:
        if (folder / name).is_file():
            rows = [row for _, row in rows_of(folder / name) if isinstance(row, Mapping) and "question_id" in row]
            return {str(row["question_id"]): _answers(row) for row in rows}
    return {}


def _answers(row: Mapping[str, Any]) -> list[str]:
    choices = row.get("choices")
    turns = row.get("turns") or (choices[0].get("turns") if isinstance(choices, list) and choices else None)
    return [str(one) for one in turns] if isinstance(turns, list) else []
