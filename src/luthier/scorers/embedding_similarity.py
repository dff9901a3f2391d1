"""Cosine of the sentence vectors of answer and target, from a stored embedder or an endpoint (Reimers and Gurevych, 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.engine import EMBED, require
from luthier.scorers._score import Answer, Resources, Score, Target


class Config(EntryConfig):
    """``model`` makes the vectors: a stored encoder or decoder, or ``openai:MODEL@URL``; ``engine`` is how it is opened. Figures of
    different models cannot be compared."""

    model: str = Field(default="minilm-l6", min_length=1)
    engine: str = "auto"


def score(answer: Answer, target: Target, config: Config) -> Score:
    """The cosine, -1 to 1, with the nearest accepted answer; 0 where either is empty."""
    resources = Resources()
    try:
        return score_many([answer], [target], config, resources)[0]
    finally:
        resources.close()


def score_many(
    answers: Sequence[Answer], targets: Sequence[Target], config: Config, resources: Resources
) -> list[Score]:
    """``score`` of each; every text is embedded once. Raises NotFoundError for an unknown model, UnsupportedError for one that
    cannot embed."""
    engine = resources.engine(config.model, config.engine)
    require(engine, EMBED)
    wanted = [text for target in targets for text in target.accepted]
    texts = list(dict.fromkeys(text for text in (*(answer.text for answer in answers), *wanted) if text.strip()))
    vectors = engine.embed(texts) if texts else ()
    place = {text: row for row, text in enumerate(texts)}
    out = []
    for answer, target in zip(answers, targets, strict=True):
        accepted = [text for text in target.accepted if text in place]
        if answer.text not in place or not accepted:
            out.append(Score(0.0, {"empty": "answer" if answer.text not in place else "target"}))
            continue
        cosines = [float(vectors[place[answer.text]] @ vectors[place[text]]) for text in accepted]
        best = max(range(len(cosines)), key=cosines.__getitem__)
        nearest = {"nearest": accepted[best]} if len(accepted) > 1 else {}
        out.append(Score(min(max(cosines[best], -1.0), 1.0), nearest))
    return out
