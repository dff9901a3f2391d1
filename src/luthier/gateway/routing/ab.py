"""An experiment: each user, session or key sees one variant, always the same.

Variants are assigned by a hash of the experiment's name and the unit, so that no state is kept, every server decides alike, and experiments
do not depend on one another. The trace says which variant of which experiment answered. A variant that fails is not replaced by another
one, which would blur the comparison; give the route ``fallbacks`` if an answer matters more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from luthier.gateway.routing._assign import By, place_of, share_at, unit_of
from luthier.gateway.routing._rule import Choice, Place, Rule, RuleConfig
from luthier.gateway.routing._weights import Weights

if TYPE_CHECKING:
    from luthier.gateway.layers import Question


class Config(RuleConfig):
    """``targets`` maps each variant to its share. ``experiment`` names it (left out: the route); another name assigns everybody anew. ``by``: what
    is told apart, the first that a request has; a request with none of them is a unit by itself.
    """

    targets: Weights
    experiment: str = ""
    by: tuple[By, ...] = Field(default=("session", "user", "key"), min_length=1)

    def names(self) -> tuple[str, ...]:
        """All variants."""
        return tuple(self.targets)


def build(config: Config, place: Place) -> Rule:
    """No state: who asks decides."""
    experiment = config.experiment or place.route

    async def choose(question: Question) -> Choice:
        kind, unit = unit_of(question.exchange, config.by)
        variant = share_at(config.targets, place_of(experiment, unit))
        return Choice(
            (variant,), f"variant of this {kind}", {"experiment": experiment, "variant": variant, "unit": kind}
        )

    return Rule(choose)
