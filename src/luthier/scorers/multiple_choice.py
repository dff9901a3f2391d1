"""Whether the likeliest choice is a right one: by its whole log-probability, or for each character, byte or token of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Answer, Option, Score, Target


class Config(EntryConfig):
    """``normalise`` divides each choice's log-probability by its length, so that long choices are not at a disadvantage: ``characters`` is
    lm-evaluation-harness's ``acc_norm``, ``bytes`` its ``acc_bytes``, ``none`` its ``acc``. A space that joins a choice to the prompt
    does not count.
    """

    normalise: Literal["none", "characters", "bytes", "tokens"] = "none"


def _text(option: Option) -> str:
    return option.text.removeprefix(" ")


_LENGTH: dict[str, Callable[[Option], int]] = {
    "none": lambda option: 1,
    "characters": lambda option: len(_text(option)),
    "bytes": lambda option: len(_text(option).encode("utf-8", "surrogatepass")),
    "tokens": lambda option: option.tokens,
}


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the likeliest choice is right, else 0.0. Of equally likely ones the first is taken, and the detail says ``tie``.

    An engine that cannot give log-probabilities wrote its choice: that is then compared with the right ones. None when no choice of the
    question is known to be right, or two choices with one text cannot be told apart.
    """
    if not answer.options:
        return _written(answer, target)
    right = _right(answer, target)
    if not right:
        return Score(None, {"reason": "no choice is known to be right"})
    length = _LENGTH[config.normalise]
    values = [option.logprob / max(length(option), 1) for option in answer.options]
    best = max(values)
    chosen = values.index(best)
    detail = {"chosen": chosen, "choice": answer.options[chosen].text}
    return Score(1.0 if chosen in right else 0.0, detail | ({"tie": True} if values.count(best) > 1 else {}))


def _right(answer: Answer, target: Target) -> set[int]:
    """Places of the right choices; in a task of labels, those whose text is accepted."""
    if target.correct:
        return {place for place in target.correct if 0 <= place < len(answer.options)}
    return {place for place, option in enumerate(answer.options) if option.text in target.accepted}


def _written(answer: Answer, target: Target) -> Score:
    given = answer.text.strip()
    if not target.correct or not target.choices:
        return Score(1.0 if given in [text.strip() for text in target.accepted] else 0.0, {"choice": given})
    chosen = [place for place, text in enumerate(target.choices) if text.strip() == given]
    right = [place in target.correct for place in chosen]
    if any(right) and not all(right):
        return Score(None, {"reason": "a right and a wrong choice have the same text"})
    return Score(1.0 if any(right) else 0.0, {"choice": given})
