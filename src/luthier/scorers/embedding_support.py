"""How near an answer's sentences are to the passages it was shown, by an embedder: a rough sign of faithfulness without a judge."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.engine import EMBED, require
from luthier.scorers._claims import says_not_found, statements
from luthier.scorers._score import Answer, Resources, Score, Target
from luthier.scorers._words import sentences


class Config(EntryConfig):
    """``model`` makes the vectors: a stored embedder, or ``openai:MODEL@URL``; ``engine`` is how it is opened. Figures of different models
    cannot be compared."""

    model: str = Field(default="minilm-l6", min_length=1)
    engine: str = "auto"


def needs_target(config: Config) -> bool:
    """The passages are what the answer is compared with."""
    return False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """See ``score_many``."""
    resources = Resources()
    try:
        return score_many([answer], [target], config, resources)[0]
    finally:
        resources.close()


def score_many(
    answers: Sequence[Answer], targets: Sequence[Target], config: Config, resources: Resources
) -> list[Score]:
    """The mean over the answer's sentences of the cosine with the nearest sentence of the passages, at least 0. Nearness is no proof: a
    sentence about the same thing with another number is near. None for an answer that states nothing or was shown nothing."""
    engine = resources.engine(config.model, config.engine)
    require(engine, EMBED)
    claims = [[] if says_not_found(a.text) else [each.text for each in statements(a.text)] for a in answers]
    shown = [[text for hit in a.hits for text in sentences(hit.chunk.text)] for a in answers]
    texts = list(
        dict.fromkeys(text for pair in zip(claims, shown, strict=True) if all(pair) for part in pair for text in part)
    )
    vectors = engine.embed(texts)
    place = {text: row for row, text in enumerate(texts)}
    out = []
    for some, passages in zip(claims, shown, strict=True):
        if not some or not passages:
            out.append(Score(None, {"reason": "the answer states nothing, or was shown nothing"}))
            continue
        known = vectors[[place[text] for text in passages]]
        nearest = [float((known @ vectors[place[claim]]).max()) for claim in some]
        out.append(Score(sum(min(max(each, 0.0), 1.0) for each in nearest) / len(nearest)))
    return out
