"""LAMBADA: how likely the last word of a passage is, which only the whole passage tells (Paperno et al., 2016).

Prompt: the passage without its last word, as it is; the word follows after a space. No worked examples. Scorers: greedy_match (the
harness's ``acc``: whether the word is what the model would have said), perplexity of the word (``perplexity``).
"""

from __future__ import annotations

from luthier.core.task import Task
from luthier.data.fields import RowError
from luthier.tasks._benchmark import Benchmark, Item, TextConfig, build_task
from luthier.tasks._fields import Fields, text
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Paperno et al. (2016), The LAMBADA dataset: Word prediction requiring a broad discourse context, arXiv:1606.06031",
    licence="CC BY 4.0 (original); MIT-style (OpenAI's version: modified MIT)",
    fields="text",
    hub="hub:EleutherAI/lambada_openai",
    matches="lambada_openai, lambada_standard",
)


class Config(TextConfig):
    """The options of every benchmark. With ``data: hub:cimec/lambada`` it is the harness's ``lambada_standard``."""


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    return Benchmark(
        name="lambada",
        kind="likelihood",
        source=SOURCE,
        read=_read,
        scorers=(("greedy_match", {}), ("perplexity", {"length_of": "original"})),
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config)


def _read(row: Fields) -> Item:
    words = text(row, "text").split(" ")
    if len(words) < 2 or not words[-1].strip():
        raise RowError("text must hold at least two words and end with one")
    target = " " + words[-1]
    one = "".join(words[-1].split())  # what is counted, so that every passage counts as one word
    return Item(" ".join(words[:-1]), target=target, references=(target, one), meta=row)
