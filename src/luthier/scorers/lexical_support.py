"""Share of an answer's words that stand in the passages it was shown: what can be said of faithfulness without a judge."""

from __future__ import annotations

from luthier.core.catalog import EntryConfig
from luthier.scorers._claims import coverage, says_not_found, statements
from luthier.scorers._score import Answer, Score, Target


class Config(EntryConfig):
    """No options: articles, case and punctuation are ignored, Chinese is compared by character."""


def needs_target(config: Config) -> bool:
    """The passages are what the answer is compared with."""
    return False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """The mean over the answer's sentences of the share of their words in the passage that has most of them, 0 to 1.

    A sentence that denies what a passage says has its words too: this finds invented names and numbers, not twisted ones. None for an answer
    that states nothing or says that the documents do not say.
    """
    claims = [] if says_not_found(answer.text) else [each.text for each in statements(answer.text)]
    if not claims:
        return Score(None, {"reason": "the answer states nothing"})
    held = [max((coverage(claim, hit.chunk.text) for hit in answer.hits), default=0.0) for claim in claims]
    return Score(sum(held) / len(held), {"claims": [round(each, 4) for each in held]})
