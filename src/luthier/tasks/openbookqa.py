"""OpenBookQA: elementary science that needs a fact and common sense, choices scored by their whole text (Mihaylov et al., 2018).

Prompt: the question's stem alone; each choice's text follows. No worked examples unless asked for, then drawn from the train part.
Scorers: multiple_choice (the harness's ``acc``), multiple_choice normalised by characters (``acc_norm``).
"""

from __future__ import annotations

from luthier.core.task import Task
from luthier.tasks._benchmark import Benchmark, Item, ShotsConfig, build_task
from luthier.tasks._fields import Fields, labelled_choices, place, text
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Mihaylov et al. (2018), Can a Suit of Armor Conduct Electricity?, arXiv:1809.02789",
    licence="Apache-2.0 (repository); the hub states unknown",
    fields="question_stem, choices (text and label lists), answerKey",
    hub="hub:allenai/openbookqa",
    matches="openbookqa",
)


class Config(ShotsConfig):
    """The options of every benchmark with worked examples."""


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    return Benchmark(
        name="openbookqa",
        kind="choice",
        source=SOURCE,
        read=_read,
        scorers=(("multiple_choice", {}), ("multiple_choice", {"normalise": "characters"})),
        pool="train",
        folder="main",
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config)


def _read(row: Fields) -> Item:
    stem, (labels, choices) = labelled_choices(row, "question_stem", "question")
    right = place(text(row, "answerKey").strip(), "answerKey", labels)
    return Item(stem, choices[right], choices, (right,), meta=row)
