"""The cheapest target that the prompt fits.

What a request will cost is expected from the targets' prices: its prompt's tokens, and as many answer tokens as the client allows, or as
answers of this route had lately, whichever is less. Dearer targets are asked when cheaper ones fail. This does not judge answers: a
target that answers badly goes on being asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from luthier.core.errors import ContextLengthError
from luthier.gateway.api.wire import RequestError
from luthier.gateway.routing._rule import Choice, Place, Rule, RuleConfig
from luthier.gateway.routing._weights import Names

if TYPE_CHECKING:
    from luthier.gateway.exchange import Exchange
    from luthier.gateway.layers import Question

_REMEMBERS = 100  # requests, of which the mean length of answers is taken


class Config(RuleConfig):
    """``targets`` to choose from, each with a ``price`` in its model's section (none counts as free). ``most`` is what one request may cost,
    in the currency of the prices; what is expected to cost more is refused. ``answer_tokens`` are expected until answers have been seen.
    """

    MODELS_ONLY = True
    targets: Names
    most: float | None = Field(default=None, gt=0)
    answer_tokens: int = Field(default=256, ge=1)

    def names(self) -> tuple[str, ...]:
        """All targets."""
        return self.targets


def build(config: Config, place: Place) -> Rule:
    """By expected cost, cheapest first; of equals the one that is named first."""
    mean = float(config.answer_tokens)

    def learn(exchange: Exchange) -> None:
        nonlocal mean
        if exchange.made:
            tokens = sum(each.completion_tokens for each in exchange.made.values()) / len(exchange.made)
            mean += (tokens - mean) / _REMEMBERS

    async def choose(question: Question) -> Choice:
        answers = question.n * len(question.prompts)
        expected: dict[str, float] = {}
        tokens = 0
        for name in config.targets:
            served = place.served(name)
            if served is None:
                continue
            tokens, _ = await place.tokens(name, question)
            if served.context_length and tokens >= served.context_length:
                continue
            limit = served.max_new_tokens if "max_new_tokens" in question.unset else question.sampling.max_new_tokens
            expected[name] = served.price.of_tokens(tokens, round(answers * min(limit, mean)))
        if not expected:
            raise ContextLengthError(
                f"the prompt has {tokens} tokens, which is more than any target of {place.route} reads"
            )
        order = sorted(expected, key=expected.__getitem__)
        fitting = tuple(name for name in order if config.most is None or expected[name] <= config.most)
        if not fitting:
            raise RequestError(
                f"this request would cost about {expected[order[0]]:.3g}; {place.route} allows {config.most:g}. Send a shorter "
                "prompt, or a lower max_tokens",
                code="too_expensive",
            )
        return Choice(fitting, f"about {expected[fitting[0]]:.3g}", after=learn)

    return Rule(choose, state=lambda: {"answer_tokens": round(mean, 1)})
