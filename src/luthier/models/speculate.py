"""Guessing the next tokens of an answer, so that one forward checks several of them (speculative decoding: Leviathan et al. 2023).

Reading a few tokens takes hardly longer than reading one where the weights' way through memory is what takes time. A guess is checked token by
token: the answer's next token is drawn from the model's own logits just as without guesses, with the same random number, and as long as it is the
guessed one the next place counts too. So answers are, to rounding, the same with and without guesses. For a single guessed token x this is
Leviathan's rule (algorithm 1) with a guess that is certain, q(x) = 1: x is kept with probability min(1, p(x) / q(x)) = p(x), else
the token comes from norm(max(0, p - q)), which is p without x.

Guesses come from the answer's own beginning (prompt look-up: Saxena 2023; Yang et al. 2023, "Inference with reference") or from a smaller model,
which draws by the random numbers that the answer will be drawn by, so that two models that agree on the distribution agree on the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

from luthier.core.engine import Sampling
from luthier.models.decode import logits
from luthier.models.sample import RowSampler, draw
from luthier.models.slots import Feed, Slots

MOST_ROWS = 4
"""With more answers side by side a forward is no longer waiting for the weights."""
MOST_TOKENS = 16
"""What a forward reads of all rows together when there are guesses in it."""

_LONGEST, _SHORTEST = 4, 2
_PAUSE = 8


class Guessed(Protocol):
    """An answer that grows: ``ids`` are its prompt and what it has said."""

    ids: list[int]
    sampler: RowSampler


class Guesser(Protocol):
    """Where guesses come from."""

    def guess(self, rows: Sequence[Guessed], most: Sequence[int]) -> list[list[int]]:
        """For each row at most ``most`` tokens that may come next."""

    def forget(self, row: Guessed) -> None:
        """The row has ended."""


class Trust:
    """How much is guessed for a row: more while guesses are right, nothing for a while after they were wrong."""

    def __init__(self) -> None:
        self.tokens, self._pause = 4, 0

    def most(self) -> int:
        """How many tokens to guess now."""
        if self._pause:
            self._pause -= 1
            return 0
        return self.tokens

    def learn(self, guessed: int, right: int) -> None:
        """Of ``guessed`` tokens so many were ``right``."""
        if right == guessed:
            self.tokens = min(2 * self.tokens, MOST_TOKENS)
        elif 2 * right < guessed:
            self.tokens = max(1, self.tokens // 2)
            self._pause = 0 if right else _PAUSE


class LookUp:
    """What followed the last few tokens when they stood in the text before."""

    def __init__(self) -> None:
        self._indexes: WeakKeyDictionary[Guessed, _Index] = WeakKeyDictionary()

    def guess(self, rows: Sequence[Guessed], most: Sequence[int]) -> list[list[int]]:
        """The longest match counts, and of several the last."""
        return [self._one(row, count) if count else [] for row, count in zip(rows, most, strict=True)]

    def forget(self, row: Guessed) -> None:
        """Its index is not needed any more."""
        self._indexes.pop(row, None)

    def _one(self, row: Guessed, most: int) -> list[int]:
        index = self._indexes.setdefault(row, _Index())
        index.read(row.ids)
        at = index.find(row.ids)
        return row.ids[at : at + most] if at is not None else []


@dataclass
class _Index:
    """After which tokens a text went on where."""

    after: dict[tuple[int, ...], int] = field(default_factory=dict)
    length: int = 0

    def read(self, ids: Sequence[int]) -> None:
        """Know all places of ``ids`` that something follows."""
        for end in range(max(self.length, 1), len(ids)):
            for size in range(_SHORTEST, min(_LONGEST, end) + 1):
                self.after[tuple(ids[end - size : end])] = end
        self.length = len(ids)

    def find(self, ids: Sequence[int]) -> int | None:
        """Where the text went on after its last tokens, when they stood there before."""
        for size in range(min(_LONGEST, len(ids) - 1), _SHORTEST - 1, -1):
            if (at := self.after.get(tuple(ids[-size:]))) is not None:
                return at
        return None


@dataclass
class _Drafted:
    """A row of the smaller model: the tokens whose keys and values are in ``slot``."""

    slot: int
    tokens: list[int] = field(default_factory=list)


class Draft:
    """A smaller model with the same tokens says what it would answer."""

    def __init__(self, module: Any, device: torch.device, context_length: int) -> None:
        self._module, self._context_length = module, context_length
        self._slots = Slots(2 * MOST_ROWS, device)
        self._rows: dict[Guessed, _Drafted] = {}

    @torch.inference_mode()
    def guess(self, rows: Sequence[Guessed], most: Sequence[int]) -> list[list[int]]:
        """Token by token, all rows in one forward."""
        out: list[list[int]] = [[] for _ in rows]
        for depth in range(max(most, default=0)):
            wanted = [
                place
                for place, row in enumerate(rows)
                if most[place] > depth and len(row.ids) + depth < self._context_length
            ]
            if not wanted:
                break
            feeds = [self._feed(rows, place, out[place]) for place in wanted]
            scores = logits(self._module, self._slots.forward(self._module, feeds))
            drawn = draw(scores, [_Ahead(rows[place].sampler, depth) for place in wanted]).tokens.tolist()
            for place, feed, token in zip(wanted, feeds, drawn, strict=True):
                self._rows[rows[place]].tokens += feed.tokens
                out[place].append(token)
        return out

    def forget(self, row: Guessed) -> None:
        """Give its slot back."""
        held = self._rows.pop(row, None)
        if held is not None:
            self._slots.close(held.slot)

    def _feed(self, rows: Sequence[Guessed], place: int, guessed: list[int]) -> Feed:
        """What the model has not seen of a row and its guess so far; what it saw of an earlier guess that was wrong counts no more."""
        row = rows[place]
        held = self._rows.get(row)
        if held is None:
            if not self._slots.free:
                self.forget(next(other for other in self._rows if other not in rows))
            held = self._rows[row] = _Drafted(self._slots.open())
        text = row.ids + guessed
        if not guessed:
            same = min(len(held.tokens), len(text) - 1)
            while held.tokens[:same] != text[:same]:
                same -= 1
            del held.tokens[same:]
        return Feed(held.slot, len(held.tokens), text[len(held.tokens) :])


class _Ahead(RowSampler):
    """Draws by the numbers that another sampler will use for a later token; without penalties and constraints, for it only guesses."""

    def __init__(self, of: RowSampler, ahead: int) -> None:
        plain = replace(of.sampling, logprobs=None, **_PLAIN)
        self.sampling, self.follower = plain, None
        self._of, self._by = of, ahead

    def uniform(self, ahead: int = 0) -> float:
        """The other's."""
        return self._of.uniform(self._by + ahead)


_PLAIN: dict[str, Any] = {
    name: getattr(Sampling(), name)
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")
}
