"""Lengths and loops: a request that is too long, an answer that is too long, an answer that says the same again and again.

An answer is looked at while it is written, and the model is stopped where the limit is reached. A loop is one piece of text, up to ``LONGEST``
characters, that comes ``repeats`` times one after the other, over at least ``loop_characters``.
"""

from __future__ import annotations

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import InputError
from luthier.gateway.guardrails._contract import INPUT, Context, Finding, Models

ON = ("input", "output")
DEFAULT_ON = ("input", "output")
ACTIONS = ("block", "cut", "flag", "hand_over")
EARLY = True
LONGEST = 400
STEP = 32
_PROBE = 24
_TRIES = 4


class Config(EntryConfig):
    """Lengths are characters; None is no limit. ``input_characters`` counts the whole conversation. ``repeats`` 0: loops are not looked for."""

    input_characters: int | None = Field(None, ge=1)
    output_characters: int | None = Field(None, ge=1)
    repeats: int = Field(8, ge=0)
    loop_characters: int = Field(400, ge=50, le=4000)


KEPT = 8000


def prepare(config: Config, models: Models) -> None:
    """Raises InputError for loops that are longer than what is looked at."""
    if config.repeats == 1 or config.repeats * _PROBE > KEPT:
        raise InputError(f"repeats must be 0, or 2 to {KEPT // _PROBE}; got {config.repeats}")


def check(text: str, config: Config, context: Context) -> list[Finding]:
    """What goes over a limit: the part behind it."""
    if context.direction == INPUT:
        most, total = config.input_characters, sum(len(message.content) for message in context.messages) or len(text)
        if most is None or total <= most or not context.last:
            return []
        return [Finding("input_length", 0, len(text), 1.0, f"{total:,} characters; at most {most:,} are allowed")]
    return scan(text, 0, True, config, context)[0]


def scan(text: str, start: int, final: bool, config: Config, context: Context) -> tuple[list[Finding], int]:
    """The first place where the answer should have ended."""
    ends: list[tuple[int, str, str]] = []
    most = config.output_characters
    if most is not None and context.offset + len(text) > most:
        ends.append((max(0, most - context.offset), "output_length", f"the answer has more than {most:,} characters"))
    loop = _loop(text, start, config, context.offset)
    if loop is not None:
        ends.append((loop, "loop", f"the answer repeats itself {config.repeats} times or more"))
    if not ends:
        return [], len(text)
    at, kind, reason = min(ends)
    return [Finding(kind, at, len(text), 1.0, reason)], len(text)


def _loop(text: str, start: int, config: Config, offset: int) -> int | None:
    """Where, at every ``STEP``-th character, what stands before it is a loop; the first such place behind ``start``."""
    if not config.repeats:
        return None
    first = -(-(offset + start + 1) // STEP) * STEP - offset
    for end in range(first, len(text) + 1, STEP):
        before = text[max(0, end - KEPT) : end]
        at = len(before) - _PROBE
        for _ in range(_TRIES):  # the nearest earlier places of the last words, one of which is a period back
            at = before.rfind(before[-_PROBE:], 0, at + _PROBE - 1)
            period = len(before) - _PROBE - at
            if at < 0 or period > LONGEST:
                break
            tail = before[-max(config.loop_characters, period * config.repeats) :]
            whole = len(tail) >= max(config.loop_characters, period * config.repeats)
            if whole and tail[period:] == tail[:-period] and not tail.isspace():
                return end
    return None
