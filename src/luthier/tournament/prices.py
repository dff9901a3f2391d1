"""What a thousand requests cost: tokens at a remote model's price, or seconds of this machine. What is not known stays unknown."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.evaluation.records import Record
from luthier.tournament.settings import ALL, Settings


def tokens_per_request(records: Sequence[Record]) -> tuple[float | None, float | None]:
    """Mean prompt and completion tokens of a request; None where the engine did not say (a request without any cannot be)."""
    asked = [r for r in records if not r.error]
    prompt = [r.prompt_tokens for r in asked if r.prompt_tokens]
    completion = [r.completion_tokens for r in asked if r.completion_tokens]
    return (
        sum(prompt) / len(prompt) if asked and len(prompt) == len(asked) else None,
        sum(completion) / len(asked) if completion else None,
    )


def is_remote(model: str) -> bool:
    """Whether ``model`` answers elsewhere."""
    return model.partition(":")[0] == "openai"


def per_1000(
    model: str,
    settings: Settings,
    *,
    prompt_tokens: float | None,
    completion_tokens: float | None,
    request_s: float | None,
) -> float | None:
    """The price of 1,000 requests; None when prices, tokens or seconds are not known."""
    if is_remote(model):
        price = settings.prices.get(model) or settings.prices.get(ALL)
        if price is None or prompt_tokens is None or completion_tokens is None:
            return None
        return (prompt_tokens * price.prompt + completion_tokens * price.completion) / 1000.0
    if settings.machine is None or request_s is None:
        return None
    return request_s * 1000.0 * settings.machine.per_hour / 3600.0
