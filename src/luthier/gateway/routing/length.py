"""By the length of the prompt: short ones to one target, long ones to another.

Tokens are counted as the target reads them, with its own tokenizer and prompt, when that is on this machine; else a token is taken to be four
bytes, and the trace says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from luthier.core.errors import ContextLengthError
from luthier.gateway.routing._rule import Choice, Place, Rule, RuleConfig

if TYPE_CHECKING:
    from luthier.gateway.layers import Question


class Config(RuleConfig):
    """``targets`` maps each target to the most tokens that a prompt for it may have, smallest first. ``beyond`` gets what is longer than all;
    without it such a prompt is refused.
    """

    MODELS_ONLY = True
    targets: dict[str, int] = Field(min_length=1)
    beyond: str = ""

    def names(self) -> tuple[str, ...]:
        """All targets."""
        return (*self.targets, *([self.beyond] if self.beyond else []))


def build(config: Config, place: Place) -> Rule:
    """The first target that takes so many tokens, then those that take more."""
    order = sorted(config.targets, key=config.targets.__getitem__)

    async def choose(question: Question) -> Choice:
        tokens, counted = 0, True
        for number, name in enumerate(order):
            tokens, counted = await place.tokens(name, question)
            if tokens <= config.targets[name]:
                rest = (*order[number:], *([config.beyond] if config.beyond else []))
                return Choice(rest, _said(tokens, counted))
        if config.beyond:
            return Choice((config.beyond,), _said(tokens, counted))
        most = config.targets[order[-1]]
        raise ContextLengthError(f"the prompt has {_said(tokens, counted)}; {place.route} takes at most {most}")

    return Rule(choose)


def _said(tokens: int, counted: bool) -> str:
    return f"{tokens} tokens" if counted else f"about {tokens} tokens"
