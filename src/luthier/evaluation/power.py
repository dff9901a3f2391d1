"""How small a difference a test set can show, and how many examples a wished one needs.

Two systems on the same examples are compared by the examples on which exactly one is right (McNemar): what counts is the share of
those, the discordance, not the accuracy. Formulas are the usual normal approximations; they hold from about ten discordant examples
on and are checked against simulation. Differences and shares are between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luthier.core.errors import EvaluationError, InputError

DISCORDANCES = (0.05, 0.1, 0.2, 0.3)
ACCURACIES = (0.5, 0.7, 0.9)


def _share(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise InputError(f"{name} must be above 0 and below 1; got {value:g}")


def _examples(examples: int) -> None:
    if examples < 1:
        raise InputError(f"examples must be at least 1; got {examples}")


@dataclass(frozen=True)
class Design:
    """What is asked of a test: two-sided at ``level`` over ``comparisons`` pairs (Bonferroni, the strictest step of Holm's), finding
    a true difference with probability ``power``."""

    power: float = 0.8
    level: float = 0.05
    comparisons: int = 1

    def __post_init__(self) -> None:
        _share("power", self.power)
        _share("level", self.level)
        if self.comparisons < 1:
            raise InputError(f"comparisons must be at least 1; got {self.comparisons}")

    @property
    def quantiles(self) -> tuple[float, float]:
        """The normal quantiles of the level and of the power."""
        from scipy.special import ndtri

        return float(ndtri(1.0 - self.level / self.comparisons / 2.0)), float(ndtri(self.power))

    @property
    def reach(self) -> float:
        """Standard errors between no difference and one that is found with ``power``: 2.8 by default."""
        return sum(self.quantiles)


STANDARD = Design()


def examples_for_margin(margin: float, *, accuracy: float = 0.5, level: float = 0.95) -> int:
    """Examples that one score needs so that its interval reaches ``margin`` to each side; an accuracy of 0.5 needs the most.

    The rule of thumb n = 1 / margin^2 (30% -> 10, 10% -> 100, 3% -> 1,000, 1% -> 10,000) is this one at 95%, rounded.
    """
    _share("margin", margin)
    _share("level", level)
    from scipy.special import ndtri

    return math.ceil((float(ndtri((1.0 + level) / 2.0)) / margin) ** 2 * accuracy * (1.0 - accuracy))


def margin_of(examples: int, *, accuracy: float = 0.5, level: float = 0.95) -> float:
    """How far the interval of one score of ``examples`` reaches to each side (Wilson's, at that accuracy: half its width)."""
    from luthier.evaluation.statistics import wilson_interval

    _examples(examples)
    found = wilson_interval(accuracy, examples, level)
    return (found.high - found.low) / 2.0


def paired_examples(difference: float, discordance: float, design: Design = STANDARD) -> int:
    """Examples on which two systems must both be asked to show ``difference`` (Connor, 1987).

    ``discordance`` is the share of examples on which exactly one of them is right. Raises InputError when it is smaller than the
    difference, which cannot be.
    """
    _share("difference", difference)
    if not difference <= discordance <= 1.0:
        raise InputError(f"discordance must be between the difference ({difference:g}) and 1; got {discordance:g}")
    level, power = design.quantiles
    spread = math.sqrt(max(discordance - difference**2, 0.0))
    return math.ceil(((level * math.sqrt(discordance) + power * spread) / difference) ** 2)


def paired_difference(examples: int, discordance: float, design: Design = STANDARD) -> float:
    """The smallest difference that ``examples`` show; ``nan`` when even a difference as large as the discordance goes unnoticed."""
    _examples(examples)
    _share("discordance", discordance)
    if paired_examples(discordance, discordance, design) > examples:
        return math.nan
    level, power = design.quantiles

    def missing(difference: float) -> float:
        spread = math.sqrt(max(discordance - difference**2, 0.0))
        return ((level * math.sqrt(discordance) + power * spread) / difference) ** 2 - examples

    return _root(missing, 1e-9, discordance)


def unpaired_examples(difference: float, accuracy: float, design: Design = STANDARD) -> int:
    """Examples that *each* of two systems needs when they are asked different ones (Fleiss, 1981, without continuity correction).

    The one has ``accuracy``, the other ``accuracy`` minus ``difference``. Raises InputError when that is not between 0 and 1.
    """
    _share("difference", difference)
    if not 0.0 < accuracy - difference < 1.0 or not 0.0 < accuracy < 1.0:
        raise InputError(f"accuracy must be above the difference ({difference:g}) and below 1; got {accuracy:g}")
    return math.ceil(_unpaired(difference, accuracy, design))


def _unpaired(difference: float, accuracy: float, design: Design) -> float:
    level, power = design.quantiles
    other, middle = accuracy - difference, accuracy - difference / 2.0
    same = level * math.sqrt(2.0 * middle * (1.0 - middle))
    apart = power * math.sqrt(accuracy * (1.0 - accuracy) + max(other * (1.0 - other), 0.0))
    return ((same + apart) / difference) ** 2


def unpaired_difference(examples: int, accuracy: float, design: Design = STANDARD) -> float:
    """The smallest difference below ``accuracy`` that ``examples`` for each of two systems show; ``nan`` when there is none."""
    _examples(examples)
    _share("accuracy", accuracy)
    if _unpaired(accuracy, accuracy, design) > examples:
        return math.nan
    return _root(lambda difference: _unpaired(difference, accuracy, design) - examples, 1e-9, accuracy)


@dataclass(frozen=True)
class Observed:
    """What records of two systems say. ``error`` is the standard error of their difference; ``detectable`` the smallest difference
    that these ``examples`` show; ``examples_needed`` those for the observed ``difference`` (None when there is none). ``discordance`` is
    None for figures that are not shares of right answers."""

    examples: int
    difference: float
    error: float
    detectable: float
    examples_needed: int | None
    discordance: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def from_differences(differences: Sequence[float], design: Design = STANDARD) -> Observed:
    """From the differences of two systems' scores, example by example.

    Raises EvaluationError when there are fewer than two examples.
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        raise EvaluationError(f"two examples at least say how much a difference varies; got {len(values)}")
    shares = bool(np.isin(values, (-1.0, 0.0, 1.0)).all())
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return from_error(
        float(values.mean()), error, len(values), design, discordance=float(np.abs(values).mean()) if shares else None
    )


def from_error(
    difference: float, error: float, examples: int, design: Design = STANDARD, *, discordance: float | None = None
) -> Observed:
    """From a difference and its standard error (a paired bootstrap's, for any figure); errors shrink with the root of the examples."""
    _examples(examples)
    detectable = design.reach * error
    needed = None if difference == 0 else math.ceil(examples * (detectable / difference) ** 2)
    return Observed(examples, difference, error, detectable, needed, discordance)


def _root(function: Any, low: float, high: float) -> float:
    from scipy.optimize import brentq

    if function(high) >= 0.0:
        return high
    return float(brentq(function, low, high, xtol=1e-10))
