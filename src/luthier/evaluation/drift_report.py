"""What a comparison of two stretches of time found: signals with their effects, intervals and adjusted probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

LEVEL = 0.05
FEWEST = 30
"""Users (or sessions, or requests of nobody known) a window needs for anything to be said."""

Group = Literal["prompts", "answers", "people"]


@dataclass(frozen=True)
class Signal:
    """One thing that was compared. ``baseline`` and ``now`` say it in words; ``effect`` (named ``measure``) has its interval and what chance alone
    gives (95% of shuffles); ``p_adjusted`` over all signals. ``note``: why nothing was tested, or what changed most."""

    group: Group
    name: str
    baseline: str
    now: str
    measure: str = ""
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    by_chance: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    shifted: bool = False
    note: str = ""


@dataclass(frozen=True)
class Drift:
    """The report. ``new`` are prompts that are least like those of the baseline; ``points`` place prompts in a plane for a picture."""

    model: str
    baseline: Mapping[str, Any]
    current: Mapping[str, Any]
    signals: tuple[Signal, ...]
    detectable: float
    separability: tuple[float, float, float] | None = None
    new: tuple[str, ...] = ()
    topics: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    level: float = LEVEL
    points: tuple[tuple[float, float, bool], ...] = field(default=(), repr=False)
    shares: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict, repr=False)

    @property
    def shifted(self) -> tuple[Signal, ...]:
        """The signals that changed more than chance explains."""
        return tuple(signal for signal in self.signals if signal.shifted)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self) | {"shifted": [f"{signal.group}: {signal.name}" for signal in self.shifted]}
