"""What scorers are given and say: an answer, what a good one is, and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from luthier.core.dataset import Example
from luthier.core.document import Citation, Hit
from luthier.core.errors import DataError
from luthier.core.message import Conversation


@dataclass(frozen=True, slots=True)
class Option:
    """A choice, a label or a text whose likelihood was asked. ``logprob`` is a sum over ``tokens`` tokens, in nats."""

    text: str
    logprob: float
    tokens: int = 0
    greedy: bool | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine gave. ``options`` are what it scored, in the order of the choices; ``samples`` all answers to one question; ``hits``
    the passages that it was shown, best first, and ``citations`` those that its text refers to."""

    text: str
    options: tuple[Option, ...] = ()
    samples: tuple[str, ...] = ()
    hits: tuple[Hit, ...] = ()
    citations: tuple[Citation, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """What a good answer is: see ``Example`` for the fields. ``input`` is the question; ``meta`` the rest of its row."""

    text: str
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    correct: tuple[int, ...] = ()
    input: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every text that counts."""
        return self.references or (self.text,)


@dataclass(frozen=True, slots=True)
class Score:
    """``value`` as the scorer defines it, None when it could not say (counted apart, never as a number); ``detail`` says why."""

    value: float | None
    detail: Mapping[str, Any] = field(default_factory=dict)


def target_of(example: Example) -> Target:
    """What a good answer to ``example`` is, as scorers read it."""
    text = "" if example.target is None else str(example.target)
    return Target(text, example.references, example.choices, example.correct, example.text, example.meta)


def asked_of(example: Example) -> tuple[Conversation, Target]:
    """What is asked in a row of any kind, and what a good answer is: the row's target, else its chosen answer, else the assistant's last
    turn. The prompt of a conversation ends before the answers at its end. Raises DataError for a row without a user turn."""
    if not any(message.role == "user" for message in example.messages):
        raise DataError(f"{example.source or example.id}: there is nothing to answer: the row has no user turn")
    messages = list(example.messages)
    last = ""
    while messages and messages[-1].role == "assistant":
        last = last or messages.pop().content
    target = target_of(example)
    if example.target is None:
        said = example.chosen[0].content if example.chosen else last
        target = replace(target, text=said)
    return tuple(messages), target


@dataclass(frozen=True, slots=True)
class Reward:
    """What an answer is worth: ``total``, the higher the better, and of each part its own value before weights (None: it could not say)."""

    total: float
    parts: Mapping[str, float | None] = field(default_factory=dict)


class Rewarding(Protocol):
    """What gives rewards. ``spec`` says which, in plain values: it is kept beside whatever they decided."""

    @property
    def spec(self) -> Sequence[Mapping[str, Any]]:
        """The parts and their options."""

    def __call__(
        self, prompts: Sequence[Conversation], targets: Sequence[Target], answers: Sequence[str]
    ) -> Sequence[Reward]:
        """The reward of each answer, in order."""
