"""What a route's strategy is made of: what it is given, and what it gives back."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from luthier.core.catalog import EntryConfig

if TYPE_CHECKING:
    from luthier.gateway.exchange import Exchange
    from luthier.gateway.layers import Question
    from luthier.gateway.targets.served import Served
    from luthier.store.database import Store


class RuleConfig(EntryConfig):
    """Base of every strategy's ``Config``. ``MODELS_ONLY``: its targets must be models, because it needs to know their prices or tokens."""

    MODELS_ONLY: ClassVar[bool] = False

    def names(self) -> tuple[str, ...]:
        """The targets that it may choose."""
        raise NotImplementedError

    def classifiers(self) -> tuple[str, ...]:
        """Models that it asks for itself; those that are not served are loaded without being shown."""
        return ()


@dataclass(frozen=True, slots=True)
class Choice:
    """Targets, best first: those after the first are asked when it fails. ``note`` goes into the trace; ``after`` is called when the request is
    over."""

    names: tuple[str, ...]
    reason: str = ""
    note: Mapping[str, Any] = field(default_factory=dict)
    after: Callable[[Exchange], object] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt at a target ended. ``good`` None: that says nothing of the target."""

    good: bool | None
    took_s: float
    first_s: float | None
    cost: float


@dataclass(frozen=True)
class Rule:
    """A strategy at work in one route.

    ``choose`` is asked once a request. ``heard`` is told how each attempt at a target of its choice ended, ``finished`` when a request that was
    answered by one is over. ``tick`` runs about once a second, ``state`` is shown in /health, ``reset`` begins anew.
    """

    choose: Callable[[Question], Awaitable[Choice]]
    heard: Callable[[str, Outcome], object] | None = None
    finished: Callable[[str, Exchange], object] | None = None
    tick: Callable[[], Awaitable[None]] | None = None
    state: Callable[[], Mapping[str, Any]] | None = None
    reset: Callable[[str], Awaitable[None]] | None = None


class Place(Protocol):
    """What a strategy may use of the gateway it works in. ``route`` is the route's name, ``now`` a clock in seconds."""

    @property
    def route(self) -> str:
        """The route's name."""

    @property
    def draw(self) -> random.Random:
        """Chance."""

    @property
    def store(self) -> Store:
        """Where state is kept that must outlive the server."""

    def now(self) -> float:
        """Seconds on a clock that only goes forward."""

    def served(self, name: str) -> Served | None:
        """What answers as ``name``; None when it is not served (any more)."""

    def load_of(self, name: str) -> float:
        """Requests that the best replica of a target has in hand; infinite when none can be asked."""

    async def tokens(self, name: str, question: Question) -> tuple[int, bool]:
        """(tokens of a question's prompts as a target reads them, whether they were counted rather than estimated)."""

    async def label(self, classifier: str, text: str, timeout_s: float) -> tuple[str, float | None]:
        """(what a classifier says of a text, its probability if it can say that). Raises LuthierError."""

    async def ask_aside(self, name: str, question: Question, note: Mapping[str, Any]) -> None:
        """Ask a target the same, in the background, at no cost to anybody; the answer goes to a trace of its own."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` in the background; its errors are logged."""
