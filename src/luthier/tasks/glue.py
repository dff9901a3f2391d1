"""GLUE: nine tasks on one or two sentences: acceptability, sentiment, paraphrase, similarity, inference (Wang et al., 2019).

Prompt: the sentences, a question about them and ``Answer:``; each label as a word follows. No worked examples unless asked for, then drawn
from the train part. Scorers by task: Matthews' correlation (cola), accuracy (sst2, mnli, qnli, rte, wnli), accuracy and F1 of the positive
label (mrpc, qqp), all as in lm-evaluation-harness; Pearson and Spearman correlation of a written grade (stsb, which it lacks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from luthier.core.errors import InputError
from luthier.core.task import Task
from luthier.data.fields import RowError
from luthier.tasks._benchmark import Benchmark, Item, ShotsConfig, build_task
from luthier.tasks._fields import Fields, field, place, text
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Wang et al. (2019), GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding, arXiv:1804.07461",
    licence="each task its own; see gluebenchmark.com",
    fields="sentence; sentence1, sentence2; premise, hypothesis; question, sentence; question1, question2; label (number or name)",
    hub="hub:nyu-mll/glue",
    matches="cola, sst2, mrpc, qqp, mnli, qnli, rte, wnli",
)
Scorers: TypeAlias = tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class Form:
    """How one task's row is asked. ``names`` are the dataset's own names of its labels, in the order of ``labels``."""

    fields: tuple[str, ...]
    prompt: str
    labels: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


_PAIR = ("sentence1", "sentence2")
_TRUTH = "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:"
_ENTAILS = ("entailment", "not_entailment")
FORMS = {
    "cola": Form(
        ("sentence",),
        "{sentence}\nQuestion: Does this sentence make sense?\nAnswer:",
        ("no", "yes"),
        ("unacceptable", "acceptable"),
    ),
    "sst2": Form(
        ("sentence",),
        "{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:",
        ("negative", "positive"),
        ("negative", "positive"),
    ),
    "mrpc": Form(
        _PAIR,
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nQuestion: Do both sentences mean the same thing?\nAnswer:",
        ("no", "yes"),
        ("not_equivalent", "equivalent"),
    ),
    "qqp": Form(
        ("question1", "question2"),
        "Question 1: {question1}\nQuestion 2: {question2}\nQuestion: Do both questions ask the same thing?\nAnswer:",
        ("no", "yes"),
        ("not_duplicate", "duplicate"),
    ),
    "stsb": Form(
        _PAIR,
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nQuestion: How alike are their meanings, from 0 (nothing in common) to 5 "
        "(the same)?\nAnswer:",
    ),
    "mnli": Form(
        ("premise", "hypothesis"),
        "{premise}\nQuestion: {hypothesis} True, False or Neither?\nAnswer:",
        ("True", "Neither", "False"),
        ("entailment", "neutral", "contradiction"),
    ),
    "qnli": Form(
        ("question", "sentence"),
        "{question}\n{sentence}\nQuestion: Does this response answer the question?\nAnswer:",
        ("yes", "no"),
        _ENTAILS,
    ),
    "rte": Form(_PAIR, _TRUTH, ("True", "False"), _ENTAILS),
    "wnli": Form(_PAIR, _TRUTH, ("False", "True"), ("not_entailment", "entailment")),
}


class Config(ShotsConfig):
    """``task``: which of the nine; in a folder of them all, its folder. ``mismatched`` asks mnli's other validation part."""

    task: Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"] = "sst2"
    mismatched: bool = False


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    form = FORMS[config.task]
    if config.mismatched and config.task != "mnli":
        raise InputError(f"mismatched is for task mnli; got {config.task}")
    part = "validation"
    if config.task == "mnli":
        part = "validation_mismatched" if config.mismatched else "validation_matched"
    joined = "" if config.chat else " "
    positive = {"average": "binary", "positive": f"{joined}{form.labels[1]}"} if form.labels else {}
    accuracy: Scorers = (("multiple_choice", {}),)
    scorers: dict[str, Scorers] = {
        "cola": (("matthews", {}),),
        "mrpc": (*accuracy, ("f1", positive)),
        "qqp": (*accuracy, ("f1", positive)),
        "stsb": (("pearson", {"take": "first"}), ("spearman", {"take": "first"})),
    }
    return Benchmark(
        name=f"glue_{config.task}",
        entry="glue",
        kind="choice" if form.labels else "generate",
        source=SOURCE,
        read=lambda row: _read(row, form),
        scorers=scorers.get(config.task, accuracy),
        part=part,
        pool="train",
        folder=config.task,
        sampler="drawn_but_own",
        max_new_tokens=8,
        stop=("\n",),
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config)


def _read(row: Fields, form: Form) -> Item:
    said = {name: text(row, name, empty=True) for name in form.fields}
    if "hypothesis" in said:  # mnli: the statement ends with one full stop
        said["hypothesis"] = _ended(said["hypothesis"])
    asked = form.prompt.format_map(said)
    if form.labels:
        right = place(field(row, "label"), "label", form.names)
        return Item(asked, form.labels[right], form.labels, (right,), meta=row)
    grade = field(row, "label", "score")
    try:
        shown = f"{float(grade):.1f}"
    except (TypeError, ValueError) as error:
        raise RowError(f"label must be a number from 0 to 5; got {grade!r}") from error
    return Item(asked, shown, target=str(grade), meta=row)


def _ended(statement: str) -> str:
    statement = statement.strip()
    return statement if statement.endswith(".") else statement + "."
