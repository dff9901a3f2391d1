"""The same tuning budget for everybody: what each training may take, and what an entrant has spent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.tournament.settings import Budget


@dataclass(frozen=True)
class Spent:
    """What trainings took together: ``seconds`` with their validations, ``tokens``, and how many they were."""

    seconds: float = 0.0
    tokens: int = 0
    trainings: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {"seconds": round(self.seconds, 3), "tokens": self.tokens, "trainings": self.trainings}


def total(parts: Iterable[Spent]) -> Spent:
    """The sum."""
    listed = list(parts)
    return Spent(sum(p.seconds for p in listed), sum(p.tokens for p in listed), sum(p.trainings for p in listed))


def limits(budget: Budget | None, shares: int, train: Mapping[str, Any]) -> dict[str, Any]:
    """Train settings that keep one of ``shares`` equal parts of the budget; a tighter limit of the entrant's own stays."""
    if budget is None:
        return {}
    out: dict[str, Any] = {}
    if budget.seconds is not None:
        out["max_seconds"] = _tighter(train.get("max_seconds"), budget.seconds / shares)
    if budget.tokens is not None:
        out["max_tokens"] = _tighter(train.get("max_tokens"), max(1, budget.tokens // shares))
    return out


def _tighter(own: Any, allowed: float) -> float:
    return allowed if own is None else min(own, allowed)
