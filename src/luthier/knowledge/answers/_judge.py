"""Questions to a model that have a few fixed answers, and how likely it finds each of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

from luthier.core.engine import MOST_LOGPROBS, Constraint, EngineInfo, Generation, Sampling
from luthier.core.message import Conversation
from luthier.strategies._thinking import Ask, Reply, only


def judged(prompt: Conversation, choices: Sequence[str], info: EngineInfo) -> Ask:
    """The call that has the model choose among ``choices``, which begin differently; with their probabilities where the engine can say them."""
    constraint = (
        Constraint("choice", json.dumps(list(choices), ensure_ascii=False)) if "choice" in info.parameters else None
    )
    logprobs = MOST_LOGPROBS if "logprobs" in info.parameters else None
    return Ask(prompt, Sampling(max_new_tokens=8, constraint=constraint, logprobs=logprobs))


def chances(reply: Reply, choices: Sequence[str]) -> dict[str, float]:
    """The probability of each choice: of the tokens that it may begin with, as shares of their sum. Without log-probabilities what was said has 1,
    and when nothing of it was said all are as likely. Raises the error that came as the reply."""
    made = only([reply])
    if weights := _weights(made, choices):
        total = sum(weights.values())
        return {choice: weights.get(choice, 0.0) / total for choice in choices}
    said = _said(made.text, choices)
    return {choice: (1.0 if choice == said else 0.0) if said else 1 / len(choices) for choice in choices}


def _weights(made: Generation, choices: Sequence[str]) -> Mapping[str, float]:
    if not made.tokens:
        return {}
    first = made.tokens[0]
    found: dict[str, float] = {}
    for data, logprob in dict([(first.data, first.logprob), *first.top]).items():
        text = data.decode("utf-8", "ignore").strip().casefold()
        fitting = [choice for choice in choices if text and choice.casefold().startswith(text)]
        if len(fitting) == 1:
            found[fitting[0]] = found.get(fitting[0], 0.0) + math.exp(logprob)
    return found if sum(found.values()) > 0.0 else {}


def _said(text: str, choices: Sequence[str]) -> str:
    """The choice that occurs first in ``text``, "" when none does; of those that begin at one place the longest."""
    places = []
    for choice in choices:
        edge = r"\b" if choice.isascii() else ""
        found = re.search(f"{edge}{re.escape(choice)}{edge}", text, re.IGNORECASE)
        if found:
            places.append((found.start(), -len(choice), choice))
    return min(places)[2] if places else ""
