"""WinoGrande: which of two names fills the blank of a sentence (Sakaguchi et al., 2021).

Prompt: the sentence up to the blank with one of the names in it; what follows the blank is scored after each (partial evaluation, Trinh
and Le, 2018). No worked examples unless asked for, then drawn from the train part. Scorer: multiple_choice (the harness's ``acc``). In a
chat turn the model is asked which name fits, and the names are scored.
"""

from __future__ import annotations

from luthier.core.task import Task
from luthier.data.fields import RowError
from luthier.tasks._benchmark import Benchmark, Item, ShotsConfig, build_task
from luthier.tasks._fields import Fields, field, place, shown, text
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Sakaguchi et al. (2021), WinoGrande: An Adversarial Winograd Schema Challenge at Scale, arXiv:1907.10641",
    licence="CC BY (repository)",
    fields="sentence (with one _), option1, option2, answer (1 or 2)",
    hub="hub:allenai/winogrande",
    matches="winogrande",
)


class Config(ShotsConfig):
    """The options of every benchmark with worked examples."""


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    return Benchmark(
        name="winogrande",
        kind="choice",
        source=SOURCE,
        read=_read,
        scorers=(("multiple_choice", {}),),
        part="validation",
        pool="train",
        folder="winogrande_xl",
        sampler="drawn_but_own",
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config)


def _read(row: Fields) -> Item:
    sentence = text(row, "sentence")
    if "_" not in sentence:
        raise RowError(f"sentence has no blank (_): {shown(sentence)}")
    options = (text(row, "option1"), text(row, "option2"))
    right = place(field(row, "answer"), "answer", ("1", "2"))
    at = sentence.index("_")
    before, after = sentence[:at], sentence[at + 1 :].strip()
    contexts = tuple(before + option for option in options)
    asked = f"{sentence}\nWhich fits the blank, {options[0]} or {options[1]}? Answer with the name only."
    return Item(
        text=contexts[right],
        answer=after,
        choices=(after, after),
        correct=(right,),
        contexts=contexts,
        asked=asked,
        options=options,
        meta=row,
    )
