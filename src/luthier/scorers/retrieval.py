"""What a search found among its first ``k`` passages: recall, precision, hit rate, MRR, nDCG or MAP, by the gold passages of each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.scorers import _ranking
from luthier.scorers._gold import Match, gold_of, ranked
from luthier.scorers._score import Answer, Score, Target

MEASURES: Mapping[str, Callable[[_ranking.Ranked, int], float]] = {
    "recall": _ranking.recall,
    "precision": _ranking.precision,
    "hit_rate": _ranking.hit_rate,
    "mrr": _ranking.reciprocal_rank,
    "ndcg": _ranking.ndcg,
    "map": _ranking.average_precision,
}


class Config(EntryConfig):
    """``measure`` of the first ``k`` passages. ``match`` answer: a chunk of the right document counts when it holds an accepted answer, where
    the row has answers; document: every chunk of it counts."""

    measure: Literal["recall", "precision", "hit_rate", "mrr", "ndcg", "map"] = "recall"
    k: int = Field(default=5, ge=1, le=1000)
    match: Match = "answer"


def needs_target(config: Config) -> bool:
    """The row must say what is to be found, not necessarily a text."""
    return False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """The measure, 0 to 1; None for a question that has no answer, or whose row does not say where it is."""
    gold = gold_of(target, config.match)
    if gold is None:
        return Score(None, {"reason": "the row says neither which passage nor which answer is right"})
    judged = ranked(gold, answer.hits)
    return Score(MEASURES[config.measure](judged, config.k), {"rank": judged.first})
