"""Overlap of words with the best accepted answer, as SQuAD counts it; Chinese by character."""

from __future__ import annotations

from collections import Counter

from luthier.core.catalog import EntryConfig
from luthier.scorers._claims import without_marks
from luthier.scorers._score import Answer, Score, Target
from luthier.scorers._words import squad_words


class Config(EntryConfig):
    """Case, ASCII punctuation and the articles a, an, the are ignored, as in the evaluation of SQuAD. ``from_documents``: the answer's marks such
    as [1] are left out, and an answer that says that the documents hold none counts as no answer."""

    from_documents: bool = False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """F1 between the answer's words and those of the accepted answer that they fit best (Rajpurkar et al., 2016, section 6.1).

    A target without words (no answer is possible) wants an answer without words, as in SQuAD 2.0.
    """
    given = squad_words(without_marks(answer.text) if config.from_documents else answer.text)
    best = max((_overlap(given, squad_words(text)) for text in target.accepted), key=lambda found: found[0])
    return Score(best[0], {"precision": best[1], "recall": best[2]})


def _overlap(given: list[str], wanted: list[str]) -> tuple[float, float, float]:
    """(F1, precision, recall)."""
    if not given or not wanted:
        same = float(given == wanted)
        return same, same, same
    common = (Counter(given) & Counter(wanted)).total()
    precision, recall = common / len(given), common / len(wanted)
    return (2 * precision * recall / (precision + recall) if common else 0.0), precision, recall
