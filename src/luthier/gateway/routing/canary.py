"""A small share of the requests to a new target, taken back by itself when that one is worse.

Each metric is a rate of bad outcomes, of which both targets should have the same: errors; answers that are slower (or whose first piece is later,
or that cost more) than 95 of 100 of the baseline's last answers; answers with a thumb down among those that were rated; answers at which a
guardrail intervened. A sequential test (``evaluation.sequential``) looks after every request and rolls the canary back as soon as one rate is
higher; that it does so to a canary that is no worse has a probability of at most ``false_alarm``, however long it runs. What was
rolled back stays so, after a restart and on every server with this store, until the canary has other weights or the route is reset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from luthier.gateway.routing._assign import By, place_of, unit_of
from luthier.gateway.routing._rule import Choice, Outcome, Place, Rule, RuleConfig
from luthier.gateway.routing._trial import Trial

if TYPE_CHECKING:
    from luthier.gateway.exchange import Exchange
    from luthier.gateway.layers import Question

Metric = Literal["errors", "latency", "first_token", "cost", "thumbs_down", "guardrails"]


class Config(RuleConfig):
    """``share`` of all sessions, users or keys (``by``; a request without any by itself) ask the ``canary``, the others the ``baseline``; a canary
    that fails is replaced by the baseline for that request. ``metrics`` are watched; a rate that is less than ``margin`` above the baseline's is
    let be. No decision falls before ``least`` requests went to the canary.
    """

    baseline: str
    canary: str
    share: float = Field(default=0.05, gt=0, lt=1)
    by: tuple[By, ...] = ("session", "user", "key")
    metrics: tuple[Metric, ...] = Field(default=("errors", "latency"), min_length=1)
    margin: float = Field(default=0.02, ge=0.001, le=0.5)
    false_alarm: float = Field(default=0.01, gt=0, lt=0.5)
    least: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _two_targets(self) -> Config:
        if self.baseline == self.canary:
            raise ValueError(f"baseline and canary must be two targets; got {self.canary!r} twice")
        return self

    def names(self) -> tuple[str, ...]:
        """Both."""
        return (self.baseline, self.canary)


def build(config: Config, place: Place) -> Rule:
    """One trial, until it is rolled back."""
    trial = Trial(place, config)
    back = Choice((config.baseline,), "the canary was rolled back")

    async def choose(question: Question) -> Choice:
        if not await trial.runs():
            return back
        kind, unit = unit_of(question.exchange, config.by)
        if place_of(f"canary/{place.route}", unit) < config.share:
            return Choice((config.canary, config.baseline), f"canary for this {kind}", {"arm": "canary"})
        return Choice((config.baseline,), f"baseline for this {kind}", {"arm": "baseline"})

    def heard(name: str, outcome: Outcome) -> None:
        if outcome.good is not None:
            trial.see("errors", name, not outcome.good)
        if outcome.good:
            trial.compare("latency", name, outcome.took_s)
            trial.compare("cost", name, outcome.cost)
            if outcome.first_s is not None:
                trial.compare("first_token", name, outcome.first_s)

    def finished(name: str, exchange: Exchange) -> None:
        trial.see("guardrails", name, bool(exchange.details.get("guardrails")))

    def state() -> dict[str, Any]:
        return trial.as_dict()

    return Rule(choose, heard, finished, trial.tick, state, trial.reset)
