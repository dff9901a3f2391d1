"""Exact match as SQuAD counts it: case, punctuation and English articles do not matter."""

from __future__ import annotations

from luthier.core.catalog import EntryConfig
from luthier.scorers._claims import without_marks
from luthier.scorers._score import Answer, Score, Target
from luthier.scorers._words import squad_normalise


class Config(EntryConfig):
    """See ``exact`` for a comparison whose leniency can be chosen. ``from_documents``: the answer's marks such as [1] are left out, and an answer
    that says that the documents hold none counts as no answer."""

    from_documents: bool = False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the answer equals any accepted one after SQuAD's normalisation (Rajpurkar et al., 2016), else 0.0."""
    text = without_marks(answer.text) if config.from_documents else answer.text
    left, accepted = squad_normalise(text), [squad_normalise(text) for text in target.accepted]
    right = left if left in accepted else accepted[0]
    return Score(1.0 if left == right else 0.0, {"answer": left, "target": right})
