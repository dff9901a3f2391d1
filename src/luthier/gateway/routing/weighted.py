"""A share of the requests for each target, drawn anew for every request.

When the drawn target fails, another is drawn from the rest with their weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.gateway.routing._rule import Choice, Place, Rule, RuleConfig
from luthier.gateway.routing._weights import Weights

if TYPE_CHECKING:
    from luthier.gateway.layers import Question


class Config(RuleConfig):
    """``targets`` maps each target to its weight; a target of weight 0 is asked only when all others failed."""

    targets: Weights

    def names(self) -> tuple[str, ...]:
        """All targets."""
        return tuple(self.targets)


def build(config: Config, place: Place) -> Rule:
    """Draws without replacement: the order of what is tried."""

    async def choose(question: Question) -> Choice:
        # Efraimidis and Spirakis 2006: exponential waiting times with the weights as rates, ordered, are such a draw
        waits = {
            name: place.draw.expovariate(weight) if weight else float("inf") for name, weight in config.targets.items()
        }
        return Choice(tuple(sorted(waits, key=waits.__getitem__)), "drawn by weight")

    return Rule(choose)
