"""HellaSwag: which of four endings continues a description (Zellers et al., 2019).

Prompt: the activity, a colon, and the context, with the marks of the WikiHow part taken out; each ending follows. No worked examples
unless asked for, then drawn from the train part. Scorers: multiple_choice (the harness's ``acc``), multiple_choice normalised by
characters (``acc_norm``, which papers report).
"""

from __future__ import annotations

import re

from luthier.core.task import Task
from luthier.tasks._benchmark import Benchmark, Item, ShotsConfig, build_task
from luthier.tasks._fields import Fields, field, place, text, texts
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Zellers et al. (2019), HellaSwag: Can a Machine Really Finish Your Sentence?, arXiv:1905.07830",
    licence="MIT",
    fields="activity_label, ctx_a, ctx_b, endings (4), label (index from 0)",
    hub="hub:Rowan/hellaswag",
    matches="hellaswag",
)


class Config(ShotsConfig):
    """The options of every benchmark with worked examples."""


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    return Benchmark(
        name="hellaswag",
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
    activity, first = text(row, "activity_label"), text(row, "ctx_a", empty=True)
    second = text(row, "ctx_b", empty=True)
    endings = tuple(_clean(ending) for ending in texts(field(row, "endings"), "endings", count=4))
    right = place(field(row, "label"), "label", ("0", "1", "2", "3"))
    context = _clean(f"{activity}: {first} {second.capitalize()}")
    return Item(context, endings[right], endings, (right,), meta=row)


def _clean(text: str) -> str:
    """Without the marks in brackets that the WikiHow part carries."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
