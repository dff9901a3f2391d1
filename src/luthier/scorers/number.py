"""The number that the answer gives, compared as a value: ``#### 42``, ``\\boxed{42}``, ``1,234.50``, ``$3``, 50%, 3/4, 一百二十."""

from __future__ import annotations

from fractions import Fraction

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.scorers._numbers import Number, Take, answer_number
from luthier.scorers._score import Answer, Score, Target


class Config(EntryConfig):
    """Which number counts, and how near is right.

    ``take``: ``marked`` is the one after ``####``, in ``\\boxed{}`` or after "answer is" (答案是); ``auto`` is that one where there is one,
    else the last; ``last`` and ``first`` are by place. ``tolerance`` is an absolute difference that still counts, ``relative`` one in
    proportion to the target. ``percent_as_fraction`` reads 50% as 0.5 (else as 50). ``fractions`` reads 3/4 as one number.
    """

    take: Take = "auto"
    tolerance: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    relative: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    percent_as_fraction: bool = False
    fractions: bool = True


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the answer's number is that of an accepted one, else 0.0, also when it has none; None when no target has a number."""
    wanted = [value for text in target.accepted if (value := _value(text, config, "auto")) is not None]
    if not wanted:
        return Score(None, {"reason": "the target has no number"})
    given = _value(answer.text, config, config.take)
    if given is None:
        return Score(0.0, {"answer": None, "target": _shown(wanted[0]), "reason": "the answer has no number"})
    near = min(wanted, key=lambda value: abs(value - given))
    allowed = max(Fraction(config.tolerance), Fraction(config.relative) * abs(near))
    return Score(1.0 if abs(given - near) <= allowed else 0.0, {"answer": _shown(given), "target": _shown(near)})


def _value(text: str, config: Config, take: Take) -> Fraction | None:
    found: Number | None = answer_number(text, take, fractions=config.fractions)
    if found is None:
        return None
    return found.value / 100 if found.percent and config.percent_as_fraction else found.value


def _shown(value: Fraction) -> int | float:
    return value.numerator if value.denominator == 1 else float(value)
