"""How likely the target text is, in proportion to its length: the sums behind perplexity and bits per byte and character."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from luthier.core.catalog import EntryConfig
from luthier.scorers._score import Answer, Floats, Option, Score, Target

Unit = Literal["word", "token", "byte", "character"]
_HIGHEST = 700.0  # nats a unit whose exponential a float still holds
_SPACE = re.compile(r"\s+")


class Measured(EntryConfig):
    """``length_of``: ``target`` measures the text whose likelihood was asked; ``original`` the last of the example's references, where a
    benchmark cleans its text first but counts the original's length (WikiText)."""

    length_of: Literal["target", "original"] = "target"


def asked(answer: Answer, target: Target) -> Option | None:
    """The option that is the target: of a question with choices the first right one, else the only one."""
    if not answer.options:
        return None
    if target.correct:
        place = target.correct[0]
        return answer.options[place] if 0 <= place < len(answer.options) else None
    same = [option for option in answer.options if option.text == target.text]
    return same[0] if same else answer.options[0] if len(answer.options) == 1 else None


def nats_and_length(
    answer: Answer, target: Target, unit: Unit, length_of: Literal["target", "original"]
) -> tuple[float, int] | None:
    """(-log-probability in nats, units), or None when there is no likelihood or no text."""
    option = asked(answer, target)
    if option is None:
        return None
    text = target.references[-1] if length_of == "original" and target.references else target.text
    length = option.tokens if unit == "token" else _LENGTH[unit](text)
    return (-option.logprob, length) if text and length > 0 else None


_LENGTH: dict[str, Callable[[str], int]] = {
    "word": lambda text: len(_SPACE.split(text)),
    "byte": lambda text: len(text.encode("utf-8", "surrogatepass")),
    "character": len,
}


def sums(
    answers: Sequence[Answer], targets: Sequence[Target], unit: Unit, length_of: Literal["target", "original"]
) -> Floats:
    """Columns: nats, units; zeros where one is missing."""
    found = [nats_and_length(a, t, unit, length_of) for a, t in zip(answers, targets, strict=True)]
    return np.array([pair or (0.0, 0.0) for pair in found], dtype=np.float64).reshape(len(found), 2)


def per_unit(totals: Floats) -> Floats:
    """Nats for each unit, each row; ``nan`` without any text."""
    rates: Floats = np.divide(totals[:, 0], totals[:, 1], out=np.full(len(totals), np.nan), where=totals[:, 1] > 0)
    return rates


def perplexities(nats: Floats) -> Floats:
    """exp of each, at most 1e304 so that it stays a number."""
    figures: Floats = np.exp(np.minimum(nats, _HIGHEST))
    return figures


def scored(found: tuple[float, int] | None, figure: Callable[[Floats], Floats]) -> Score:
    """One example's figure; None when there was no likelihood."""
    if found is None:
        return Score(None, {"reason": "no log-probability of the target, or no text"})
    value = float(figure(per_unit(np.array([found], dtype=np.float64)))[0])
    return Score(value, {"nats": found[0], "units": found[1]})
