"""Whether the answer is valid JSON."""

from __future__ import annotations

from typing import Literal

from luthier.core.catalog import EntryConfig
from luthier.scorers._json import Where, find_json
from luthier.scorers._score import Answer, Score, Target

_TYPES: dict[str, type] = {"object": dict, "array": list}


class Config(EntryConfig):
    """``where``: the ``whole`` answer must be JSON, or may be the one ``fenced`` block in it, or JSON ``anywhere`` in it is enough.
    ``type`` is what it must be.
    """

    where: Where = "fenced"
    type: Literal["any", "object", "array"] = "any"


def needs_target(config: Config) -> bool:
    """The answer alone is read."""
    return False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 for valid JSON (RFC 8259; NaN and comments are not), else 0.0 with the reason. The target does not matter."""
    try:
        value = find_json(answer.text, config.where)
    except ValueError as error:
        return Score(0.0, {"reason": str(error)})
    if config.type != "any" and not isinstance(value, _TYPES[config.type]):
        return Score(0.0, {"reason": f"it is of type {type(value).__name__}, not {config.type}"})
    return Score(1.0)
