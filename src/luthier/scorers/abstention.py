"""Whether "not in the documents" is said when, and only when, the documents do not answer the question."""

from __future__ import annotations

from typing import Literal

from luthier.core.catalog import EntryConfig
from luthier.scorers._claims import says_not_found
from luthier.scorers._gold import unanswerable
from luthier.scorers._score import Answer, Score, Target


class Config(EntryConfig):
    """``of``: all questions; only the ``unanswerable`` ones (the share that is refused); or only the ``answerable`` ones (the share that is not).
    A row is unanswerable with ``answerable: false`` or an empty list of ``answers``."""

    of: Literal["all", "unanswerable", "answerable"] = "all"


def needs_target(config: Config) -> bool:
    """A question without an answer has none."""
    return False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1 when an answer was refused exactly where there is none, else 0; None for a question that ``of`` leaves out. An empty answer is
    a refusal; others are recognised by what they say, in English and Chinese."""
    without = unanswerable(target)
    if config.of != "all" and without != (config.of == "unanswerable"):
        return Score(None)
    refused = says_not_found(answer.text)
    return Score(float(refused == without), {"refused": refused})
