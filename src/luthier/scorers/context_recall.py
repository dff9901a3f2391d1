"""How much of the right answer the passages hold (context recall of RAGAS; Es et al., 2023), by its words or a judge."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.scorers._claims import coverage, statements
from luthier.scorers._gold import plain, unanswerable
from luthier.scorers._score import Answer, Resources, Score, Target
from luthier.scorers._verdicts import judge, supported
from luthier.scorers._words import holds, reference_texts


class Config(EntryConfig):
    """``judge`` names the model that says of each sentence of the target whether the first ``k`` passages support it, ``engine`` how it is
    opened. Left out, a sentence counts that stands in a passage, or has at least the share ``coverage`` of its words in one."""

    k: int = Field(default=10, ge=1, le=1000)
    judge: str = ""
    engine: str = "auto"
    coverage: float = Field(default=0.8, gt=0.0, le=1.0)


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
    """Sentences of the target that the passages support over all of them; without a judge, the best of the accepted answers counts. None
    for questions without an answer."""
    if not config.judge:
        return [_by_words(answer, target, config) for answer, target in zip(answers, targets, strict=True)]
    asked, sizes = [], []
    for answer, target in zip(answers, targets, strict=True):
        claims = [] if unanswerable(target) else [each.text for each in statements(target.text)]
        passages = [hit.chunk.text for hit in answer.hits[: config.k]]
        sizes.append(len(claims))
        asked += [supported(claim, passages, target.input) for claim in claims]
    said = iter(judge(resources, config.judge, config.engine, asked))
    return [_share([next(said) for _ in range(size)]) for size in sizes]


def _share(verdicts: Sequence[bool | None]) -> Score:
    known = [each for each in verdicts if each is not None]
    if not known:
        return Score(None, {"reason": "there is no claim that the judge could be read on"})
    return Score(sum(known) / len(known), {"verdicts": list(verdicts)})


def _by_words(answer: Answer, target: Target, config: Config) -> Score:
    accepted = reference_texts(target.accepted)
    if unanswerable(target) or not accepted:
        return Score(None, {"reason": "the question has no answer"})
    passages = [(hit.chunk.text, plain(hit.chunk.text)) for hit in answer.hits[: config.k]]
    best = 0.0
    for text in accepted:
        claims = [each.text for each in statements(text)] or [text]
        held = [
            any(
                holds(flat, plain(claim), whole_words=True) or coverage(claim, whole) >= config.coverage
                for whole, flat in passages
            )
            for claim in claims
        ]
        best = max(best, sum(held) / len(held))
    return Score(best)
