"""Models that say how good an answer is, as a number: reward models and judges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.digest import digest_json
from luthier.core.engine import SCORE, Engine, ScoreRequest, require
from luthier.core.errors import InputError, did_you_mean
from luthier.core.message import user
from luthier.strategies._texts import Texts, say

if TYPE_CHECKING:
    from luthier.store.database import Store

Items = Sequence[tuple[str, str]]
"""(question, answer) pairs."""


@dataclass(frozen=True)
class Reward:
    """Who values answers, and how; ``digest`` covers both."""

    model: Engine
    value: Callable[[Items], list[float]]
    digest: str

    def of(self, items: Items) -> list[float]:
        """Each pair's value, higher is better; minus infinity where none could be had."""
        return self.value(items)

    def close(self) -> None:
        """Close the model."""
        self.model.close()


def model_reward(model: Engine, label: str, against: str, texts: Texts) -> Reward:
    """The log-probability of ``label``: from the classification head of an encoder, which reads question and answer; or, of a decoder, of
    ``label`` against ``against`` as the reply to the text ``ask``.

    Raises UnsupportedError for an engine that does not score, InputError for a label that its head lacks.
    """
    require(model, SCORE)
    info = model.info
    if info.labels and label not in info.labels:
        raise InputError(
            f"best_of_n.label must be a label of {info.model}; got {label!r}. {did_you_mean(label, info.labels)}"
        )

    def of(items: Items) -> list[float]:
        if info.labels:
            asked = [ScoreRequest(user(f"{question}\n\n{answer}"), (label,)) for question, answer in items]
            return [_number(row[0].logprob) for row in model.score(asked)]
        shown = [say(texts, "ask", question, question=question, answer=answer) for question, answer in items]
        asked = [ScoreRequest(user(text), (label, against)) for text in shown]
        return [_number(_share(row[0].logprob, row[1].logprob)) for row in model.score(asked)]

    how = [info.model_digest or info.model, info.base_digest, info.prompt_digest, label]
    return Reward(model, of, digest_json(["reward", *how, *([] if info.labels else [against, texts])]))


def judge_reward(model: Engine, rubric: str, store: Store | None) -> Reward:
    """The grade that ``model`` gives as a judge by ``rubric``."""
    from luthier.strategies._judge import Judge, Question

    judge = Judge(model, rubric=rubric, store=store)

    def of(items: Items) -> list[float]:
        grades = judge.grade([(Question(question), answer) for question, answer in items])
        return [-math.inf if grade.value is None else grade.value for grade in grades]

    info = model.info
    how = [info.model_digest or info.model, info.base_digest, info.prompt_digest, rubric]
    return Reward(model, of, digest_json(["judge", *how]))


def _share(one: float, other: float) -> float:
    """log of p(one) / (p(one) + p(other)), from the logs of both."""
    if one == -math.inf:
        return one
    return -math.log1p(math.exp(min(other - one, 700.0)))


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else value
