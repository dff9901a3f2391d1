"""ARC: school science questions, easy and challenge part, choices scored by their whole text (Clark et al., 2018).

Prompt: ``Question: ...`` and ``Answer:``; each choice's text follows. No worked examples unless asked for, then drawn from the train part.
Scorers: multiple_choice (the harness's ``acc``), multiple_choice normalised by characters (``acc_norm``).
"""

from __future__ import annotations

from typing import Literal

from luthier.core.task import Task
from luthier.tasks._benchmark import Benchmark, Item, ShotsConfig, build_task
from luthier.tasks._fields import Fields, field, labelled_choices, place
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Clark et al. (2018), Think you have Solved Question Answering? Try ARC, arXiv:1803.05457",
    licence="CC BY-SA 4.0",
    fields="question, choices (text and label lists), answerKey",
    hub="hub:allenai/ai2_arc",
    matches="arc_easy, arc_challenge",
)


class Config(ShotsConfig):
    """``level``: the easy or the challenge questions (in a folder of both: ARC-Easy and ARC-Challenge)."""

    level: Literal["easy", "challenge"] = "challenge"


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    return Benchmark(
        name=f"arc_{config.level}",
        entry="arc",
        kind="choice",
        source=SOURCE,
        read=_read,
        scorers=(("multiple_choice", {}), ("multiple_choice", {"normalise": "characters"})),
        pool="train",
        folder="ARC-Easy" if config.level == "easy" else "ARC-Challenge",
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config)


def _read(row: Fields) -> Item:
    question, (labels, choices) = labelled_choices(row, "question")
    right = place(field(row, "answerKey"), "answerKey", labels)
    return Item(f"Question: {question}\nAnswer:", choices[right], choices, (right,), meta=row)
