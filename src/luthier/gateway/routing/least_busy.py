"""The target that has the least to do at the moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.gateway.routing._rule import Choice, Place, Rule, RuleConfig
from luthier.gateway.routing._weights import Names

if TYPE_CHECKING:
    from luthier.gateway.layers import Question


class Config(RuleConfig):
    """``targets`` to compare. A pool's load is that of its least busy replica; of equals one is drawn."""

    MODELS_ONLY = True
    targets: Names

    def names(self) -> tuple[str, ...]:
        """All targets."""
        return self.targets


def build(config: Config, place: Place) -> Rule:
    """By requests in hand, waiting ones included. What cannot be asked comes last."""

    async def choose(question: Question) -> Choice:
        loads = {name: (place.load_of(name), place.draw.random()) for name in config.targets}
        order = sorted(loads, key=loads.__getitem__)
        return Choice(tuple(order), f"{loads[order[0]][0]:g} requests in hand")

    return Rule(choose)
