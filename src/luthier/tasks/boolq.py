"""BoolQ: yes-or-no questions about a paragraph (Clark et al., 2019).

Prompt: the passage, ``Question: ...?`` and ``Answer:``; ``no`` or ``yes`` follows. No worked examples unless asked for, then drawn from the
train part. Scorer: multiple_choice (the harness's ``acc``).
"""

from __future__ import annotations

from luthier.core.task import Task
from luthier.tasks._benchmark import Benchmark, Item, ShotsConfig, build_task
from luthier.tasks._fields import Fields, field, place, text
from luthier.tasks._source import Source

CHOICES = ("no", "yes")

SOURCE = Source(
    paper="Clark et al. (2019), BoolQ: Exploring the Surprising Difficulty of Natural Yes/No Questions, arXiv:1905.10044",
    licence="CC BY-SA 3.0",
    fields="question, passage, label (0, 1, false or true; also called answer)",
    hub="hub:aps/super_glue",
    matches="boolq",
)


class Config(ShotsConfig):
    """The options of every benchmark with worked examples."""


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    return Benchmark(
        name="boolq",
        kind="choice",
        source=SOURCE,
        read=_read,
        scorers=(("multiple_choice", {}),),
        part="validation",
        pool="train",
        folder="boolq",
        sampler="drawn_but_own",
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config)


def _read(row: Fields) -> Item:
    said = field(row, "label", "answer")
    right = place(said.lower() if isinstance(said, str) else str(said).lower(), "label", ("false", "true"))
    asked = f"{text(row, 'passage')}\nQuestion: {text(row, 'question')}?\nAnswer:"
    return Item(asked, CHOICES[right], CHOICES, (right,), meta=row)
