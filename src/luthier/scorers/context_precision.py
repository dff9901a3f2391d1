"""Whether useful passages stand before useless ones (context precision of RAGAS; Es et al., 2023), by gold passages or a judge."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.scorers._gold import Match, gold_of, ranked, unanswerable
from luthier.scorers._score import Answer, Resources, Score, Target
from luthier.scorers._verdicts import USEFUL, Asked, judge


class Config(EntryConfig):
    """``judge`` names the model that says of each of the first ``k`` passages whether it was useful for the target's answer, ``engine`` how it
    is opened; left out, the row's gold passages say so. ``match`` as in scorer ``retrieval``."""

    k: int = Field(default=10, ge=1, le=1000)
    judge: str = ""
    engine: str = "auto"
    match: Match = "answer"


def needs_target(config: Config) -> bool:
    """The judge is shown it."""
    return bool(config.judge)


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
    """sum over ranks of precision@rank x useful(rank), over the number of useful passages; 0 when none is. None for questions without an
    answer, and where neither gold passage nor judge could say."""
    if not config.judge:
        return [_by_gold(answer, target, config) for answer, target in zip(answers, targets, strict=True)]
    asked, sizes = [], []
    for answer, target in zip(answers, targets, strict=True):
        shown = () if unanswerable(target) else answer.hits[: config.k]
        sizes.append(len(shown))
        asked += [
            Asked(USEFUL, {"question": target.input, "answer": target.text, "passages": hit.chunk.text})
            for hit in shown
        ]
    said = iter(judge(resources, config.judge, config.engine, asked))
    out = []
    for size, target in zip(sizes, targets, strict=True):
        verdicts = [next(said) for _ in range(size)]
        if unanswerable(target):
            out.append(Score(None, {"reason": "the question has no answer"}))
        elif None in verdicts:
            out.append(Score(None, {"reason": "the judge could not be read", "verdicts": verdicts}))
        else:
            out.append(Score(average([bool(each) for each in verdicts]), {"verdicts": verdicts}))
    return out


def average(useful: Sequence[bool]) -> float:
    """sum_k precision@k v_k / sum_k v_k; 0 without a useful one."""
    right, total = 0, 0.0
    for rank, each in enumerate(useful, 1):
        right += each
        total += each * right / rank
    return total / right if right else 0.0


def _by_gold(answer: Answer, target: Target, config: Config) -> Score:
    gold = gold_of(target, config.match)
    if gold is None:
        return Score(None, {"reason": "the row says neither which passage nor which answer is right"})
    verdicts = [bool(each) for each in ranked(gold, answer.hits[: config.k]).found]
    return Score(average(verdicts), {"verdicts": verdicts})
