"""By what the user wants: a classifier that Luthier tuned reads the last user turn, and its label decides.

The classifier is a stored model with labels: an encoder, or a decoder that answers with one of them. A label that it is not sure of, one
without a target, and a classifier that fails or is too slow lead to the default target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from luthier.core.errors import LuthierError
from luthier.core.message import last_user_text
from luthier.gateway.routing._rule import Choice, Place, Rule, RuleConfig

if TYPE_CHECKING:
    from luthier.gateway.layers import Question


class Config(RuleConfig):
    """``classifier`` is a served or stored model; ``targets`` maps its labels to targets. ``threshold`` is the least probability of a label that
    is followed. ``timeout_s`` bounds what the classifier may delay a request.
    """

    classifier: str
    targets: dict[str, str] = Field(min_length=1)
    default: str
    threshold: float = Field(default=0.5, ge=0, le=1)
    timeout_s: float = Field(default=2.0, gt=0)

    def names(self) -> tuple[str, ...]:
        """All targets."""
        return tuple(dict.fromkeys([*self.targets.values(), self.default]))

    def classifiers(self) -> tuple[str, ...]:
        """The classifier."""
        return (self.classifier,)


def build(config: Config, place: Place) -> Rule:
    """The label's target, then the default."""

    async def choose(question: Question) -> Choice:
        try:
            label, probability = await place.label(
                config.classifier, last_user_text(question.prompts[0]), config.timeout_s
            )
        except LuthierError as error:
            return Choice((config.default,), f"the classifier failed: {error.message}")
        note = {"intent": label} | ({} if probability is None else {"probability": round(probability, 4)})
        if probability is not None and probability < config.threshold:
            return Choice((config.default,), f"{label!r} is not sure enough", note)
        if label not in config.targets:
            return Choice((config.default,), f"{label!r} has no target", note)
        names = dict.fromkeys([config.targets[label], config.default])
        return Choice(tuple(names), f"{label!r}", note)

    return Rule(choose)
