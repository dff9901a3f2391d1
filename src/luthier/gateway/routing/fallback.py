"""The first target that can answer, in a fixed order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.gateway.routing._rule import Choice, Place, Rule, RuleConfig
from luthier.gateway.routing._weights import Names

if TYPE_CHECKING:
    from luthier.gateway.layers import Question


class Config(RuleConfig):
    """``targets`` in the order in which they are tried."""

    targets: Names

    def names(self) -> tuple[str, ...]:
        """All targets."""
        return self.targets


def build(config: Config, place: Place) -> Rule:
    """Always the same order; what fails is skipped by what asks."""
    choice = Choice(config.targets, "first that can")

    async def choose(question: Question) -> Choice:
        return choice

    return Rule(choose)
