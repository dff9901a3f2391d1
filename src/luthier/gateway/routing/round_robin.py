"""One target after the other, each as often as the rest."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from luthier.gateway.routing._rule import Choice, Place, Rule, RuleConfig
from luthier.gateway.routing._weights import Names

if TYPE_CHECKING:
    from luthier.gateway.layers import Question


class Config(RuleConfig):
    """``targets`` that take turns; when one fails, the next in turn is asked."""

    targets: Names

    def names(self) -> tuple[str, ...]:
        """All targets."""
        return self.targets


def build(config: Config, place: Place) -> Rule:
    """Turns are counted for the route, whoever asks."""
    turns, targets = count(), config.targets

    async def choose(question: Question) -> Choice:
        first = next(turns) % len(targets)
        return Choice((*targets[first:], *targets[:first]), "its turn")

    return Rule(choose)
