"""What a guardrail is.

An entry has a ``Config`` and ``check(text, config, context) -> list[Finding]``, which never changes anything: what is done about a finding
(block, mask, ask again, ...) is the rule's ``action``, and ``gateway.guard.layer`` does it. Besides, an entry may have:

- ``ON``: the directions that it can be used in, the first ones being those of a rule that does not say (default: both, used on input);
- ``ACTIONS``: what may be done about its findings, the first by default;
- ``ROLES``: whose texts it reads on input (default: the user's);
- ``prepare(config, models)``: what it needs all the time (compiled patterns, opened models), made once; ``context.state`` is the result.
  Raises InputError for options that cannot be;
- ``scan(text, start, final, config, context) -> (findings, cut)``: ``check`` for a text that is still growing: what is sure of
  ``text[start:cut]``. Nothing that follows may change it. ``final`` says that nothing follows, and the cut is then the end. The findings of
  a text that comes in pieces must be those of the whole, however it is cut; ``KEPT`` characters before the cut are shown again the next time;
- ``streams(config)``: whether ``scan`` works with these options (default: when there is one); otherwise an answer is held back until it is whole;
- ``slow(config)``: whether a check asks a model, and so must not run on the event loop;
- ``amend(conversation, config, context)``: what the model is asked instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from luthier.core.engine import Constraint, Engine
from luthier.core.message import Conversation

Direction: TypeAlias = Literal["input", "output"]
Action: TypeAlias = Literal["block", "mask", "cut", "retry", "flag", "hand_over"]

INPUT: Direction = "input"
OUTPUT: Direction = "output"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a guardrail found in ``text[start:end]``. ``score`` is 0 to 1.

    ``reason`` is for people and goes into traces and answers: it never repeats what was found.
    """

    kind: str
    start: int
    end: int
    score: float = 1.0
    reason: str = ""


def same(text: str) -> str:
    """The text itself."""
    return text


@dataclass
class Context:
    """What a check may know besides the text.

    ``role``: whose text it is; ``last``: it is the last turn of that role. ``messages``: the conversation as the model sees it.
    ``offset``: how many characters of the text came before what is shown. ``restored`` gives the text as the caller will see it.
    """

    direction: Direction
    role: str = "user"
    last: bool = True
    messages: Conversation = ()
    constraint: Constraint | None = None
    offset: int = 0
    restored: Callable[[str], str] = same
    state: Any = field(default=None, repr=False)


class Models(Protocol):
    """Where entries get models."""

    def engine(self, name: str) -> Engine:
        """The engine of a served or stored model, opened once and closed with the server. Raises NotFoundError."""


def whole(kind: str, text: str, score: float = 1.0, reason: str = "") -> list[Finding]:
    """One finding over all of ``text``."""
    return [Finding(kind, 0, len(text), score, reason)]


def strongest(findings: Sequence[Finding]) -> Finding:
    """The finding of the highest score."""
    return max(findings, key=lambda each: each.score)
