"""A copy of the question to another target, whose answer goes to a trace and to nobody else.

The copy is asked after the answer, when the gate has a free place, at the lowest priority; when too many run already it is left out. It costs its
caller nothing and counts for no budget; its trace says whose shadow it is and what it would have cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from luthier.gateway.routing._rule import Choice, Place, Rule, RuleConfig

if TYPE_CHECKING:
    from luthier.gateway.exchange import Exchange
    from luthier.gateway.layers import Question


class Config(RuleConfig):
    """``target`` answers, ``shadow`` is asked the same for a ``share`` of the requests; at most ``most_running`` copies at once."""

    target: str
    shadow: str
    share: float = Field(default=1.0, gt=0, le=1)
    most_running: int = Field(default=2, ge=1)

    def names(self) -> tuple[str, ...]:
        """Both."""
        return (self.target, self.shadow)


def build(config: Config, place: Place) -> Rule:
    """The target, and its shadow when the request has been answered."""
    counts = {"asked": 0, "left_out": 0, "running": 0}

    async def copy(question: Question, exchange: Exchange) -> None:
        try:
            await place.ask_aside(config.shadow, question, {"shadow_of": exchange.id, "route": place.route})
            counts["asked"] += 1
        finally:
            counts["running"] -= 1

    async def choose(question: Question) -> Choice:
        def after(exchange: Exchange) -> None:
            if exchange.error or place.draw.random() >= config.share:
                return
            if counts["running"] >= config.most_running:
                counts["left_out"] += 1
                return
            counts["running"] += 1
            place.spawn(copy(question, exchange))

        return Choice((config.target,), "", after=after)

    return Rule(choose, state=lambda: dict(counts))
