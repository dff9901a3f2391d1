"""Means of the losses of a step or a validation: over everything, and over what is of each source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.objectives._loss import Loss, Totals


class Tally:
    """Takes losses in; ``means`` has ``loss`` and, where sources were named, ``loss/wiki``."""

    def __init__(self) -> None:
        self._all = Totals()
        self._each: dict[str, Totals] = {}

    def add(self, loss: Loss, source: str | None = None) -> None:
        """Take one batch in, of ``source`` where it is of one of several."""
        self._all.add(loss)
        if source is not None:
            self._each.setdefault(source, Totals()).add(loss)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {"all": self._all.as_dict(), "each": {name: of.as_dict() for name, of in self._each.items()}}

    @staticmethod
    def sum(parts: Sequence[Mapping[str, Any]]) -> Tally:
        """What several have counted together, from their plain forms."""
        whole = Tally()
        for part in parts:
            whole._all.take(part["all"])
            for name, of in part["each"].items():
                whole._each.setdefault(name, Totals()).take(of)
        return whole

    def means(self, shares: Mapping[Any, float] | None = None) -> dict[str, float]:
        """By name; of a source only the metrics of its own batches.

        Over all, each batch counts by what its loss counts. With ``shares`` each source counts by its share instead, and only the metrics that
        all sources have are there.
        """
        each = {name: of.means() for name, of in self._each.items()}
        named = {f"{key}/{name}": value for name, of in each.items() for key, value in of.items()}
        if shares is None:
            return self._all.means() | named
        total = sum(shares[name] for name in each)
        common = set.intersection(*(set(of) for of in each.values())) if each else set()
        first = next(iter(each.values()), {})
        over_all = {
            key: sum(shares[name] * of[key] for name, of in each.items()) / total for key in first if key in common
        }
        return over_all | named
