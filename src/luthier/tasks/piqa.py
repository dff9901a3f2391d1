"""PIQA: which of two ways reaches an everyday goal (Bisk et al., 2020).

Prompt: ``Question:`` and the goal, ``Answer:``; each solution's text follows. No worked examples unless asked for, then drawn from the
train part. Scorers: multiple_choice (the harness's ``acc``), multiple_choice normalised by characters (``acc_norm``).
"""

from __future__ import annotations

from luthier.core.task import Task
from luthier.tasks._benchmark import Benchmark, Item, ShotsConfig, build_task
from luthier.tasks._fields import Fields, field, place, text
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Bisk et al. (2020), PIQA: Reasoning about Physical Commonsense in Natural Language, arXiv:1911.11641",
    licence="AFL-3.0",
    fields="goal, sol1, sol2, label (0 or 1)",
    hub="hub:baber/piqa",
    matches="piqa",
)


class Config(ShotsConfig):
    """The options of every benchmark with worked examples."""


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    return Benchmark(
        name="piqa",
        kind="choice",
        source=SOURCE,
        read=_read,
        scorers=(("multiple_choice", {}), ("multiple_choice", {"normalise": "characters"})),
        part="validation",
        pool="train",
        sampler="drawn_but_own",
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config)


def _read(row: Fields) -> Item:
    choices = (text(row, "sol1", empty=True), text(row, "sol2", empty=True))
    right = place(field(row, "label"), "label", ("0", "1"))
    return Item(f"Question: {text(row, 'goal', empty=True)}\nAnswer:", choices[right], choices, (right,), meta=row)
