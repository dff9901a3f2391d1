"""What stands between a request and the engine that answers it, each layer around the next.

A layer is a function of a question and of ``ask``, which puts a question to what is behind it. It may refuse (raise), change the question,
answer itself, ask again or elsewhere, and change what comes back, piece by piece. The order from the outside in: guardrails (see every
word before and after), routes (choose what answers, and another when that fails), caches (know the target's digests), and at the bottom
the call of the engine (``gateway.backend``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from luthier.core.engine import GENERATE, Sampling, require, require_parameters
from luthier.core.message import Prompt
from luthier.gateway.calls import Piece
from luthier.gateway.knowledge.seen import seen_by
from luthier.gateway.targets.gate import Turn

if TYPE_CHECKING:
    from luthier.gateway.exchange import Exchange
    from luthier.gateway.service import Served


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, as one layer puts it to the next; ``exchange`` is the request that it belongs to.

    ``n`` answers to each of ``prompts``: choice ``i * n + j`` is the j-th answer to prompt i. ``unset`` names the fields of ``sampling`` that
    the client left open; a target's own defaults fill them. ``served`` is None until a target is chosen, ``turn`` until it is put to one.
    """

    exchange: Exchange
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    n: int = 1
    stream: bool = False
    unset: frozenset[str] = frozenset()
    served: Served | None = None
    turn: Turn | None = None

    def to(self, served: Served, turn: Turn | None = None) -> Question:
        """The question for this target as its caller sees it, its defaults filled in; the trace names it. Raises UnsupportedError for what its engine cannot do."""
        served = seen_by(served, self.exchange.caller)
        defaults = {"temperature": served.temperature, "max_new_tokens": served.max_new_tokens}
        filled: dict[str, Any] = {name: value for name, value in defaults.items() if name in self.unset}
        sampling = replace(self.sampling, **filled) if filled else self.sampling
        require(served.engine, GENERATE)
        require_parameters(served.engine.info, self.prompts, sampling)
        self.exchange.served = served
        self.exchange.parameters |= filled
        return replace(self, sampling=sampling, served=served, turn=turn)


Ask: TypeAlias = Callable[[Question], AsyncIterator[Piece]]


class Layer(Protocol):
    """One layer."""

    def __call__(self, question: Question, ask: Ask) -> AsyncIterator[Piece]:
        """The pieces of the answers to ``question``; ``ask`` puts a question to what is behind the layer."""


def compose(layers: Sequence[Layer], innermost: Ask) -> Ask:
    """``layers`` around ``innermost``, the first one outermost."""
    ask = innermost
    for layer in reversed(layers):
        ask = partial(layer, ask=ask)
    return ask
