"""Drawing the next token from logits, for many rows at once, each in its own way.

Rows never influence one another: each has its own parameters and its own random numbers, and its draw inverts its own cumulative
distribution, so that an answer does not depend on what else is in the batch. Order of the steps: bias, repetition penalty (Keskar et al.
2019, CTRL, section 4.1), frequency and presence penalty (OpenAI's: c times the one and, where c > 0, the other off the logit of a token
that was said c times), constraint; then temperature, top-k, top-p (Holtzman et al. 2020, nucleus sampling), min-p (Nguyen et al. 2024,
equation 2).
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from luthier.core.engine import Sampling

_LIKELY = 256
"""The nucleus is looked for among so many tokens first; sorting a whole vocabulary is slow."""

_TOLERANCE = 1e-6
"""Sums of probabilities that should equal top_p may miss it by rounding."""


class Follower(Protocol):
    """Where one answer stands in what its constraint allows (``models.constrain``)."""

    def mask(self, logits: torch.Tensor) -> None:
        """Put -inf where a token is not allowed next; (vocabulary,), in place."""

    def take(self, token: int) -> None:
        """This token was drawn."""

    @property
    def done(self) -> bool:
        """Whether the text is complete and nothing may follow."""

    def copy(self) -> Follower:
        """Another one at the same place."""


class RowSampler:
    """How the tokens of one answer are drawn: its parameters, its random numbers, and what it has said so far.

    ``prompt`` counts for the repetition penalty. With a seed (``seed`` before ``sampling.seed``) the numbers are the same every time.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int] = (),
        *,
        seed: int | None = None,
        follower: Follower | None = None,
    ) -> None:
        self.sampling, self.follower = sampling, follower
        self._prompt = prompt
        self._numbers: random.Random | None = None
        if sampling.temperature > 0.0:
            seed = sampling.seed if seed is None else seed
            self._numbers = random.Random(secrets.randbits(63) if seed is None else seed % 2**63)
        self._ahead: list[float] = []
        self._seen: torch.Tensor | None = None  # distinct tokens of prompt and answer
        self._known: set[int] = set()
        self._counts: Counter[int] = Counter()

    @property
    def changes(self) -> bool:
        """Whether ``adjust`` does anything."""
        asked = self.sampling
        return bool(
            asked.logit_bias
            or asked.repetition_penalty != 1.0
            or asked.presence_penalty
            or asked.frequency_penalty
            or self.follower is not None
        )

    @property
    def done(self) -> bool:
        """Whether the constraint allows no more."""
        return self.follower is not None and self.follower.done

    def adjust(self, logits: torch.Tensor) -> None:
        """Bias, penalties and constraint; logits (vocabulary,) fp32, in place."""
        asked = self.sampling
        if asked.logit_bias:
            ids, values = zip(*asked.logit_bias, strict=True)
            logits.index_add_(0, torch.tensor(ids, device=logits.device), logits.new_tensor(values))
        if asked.repetition_penalty != 1.0:
            seen = self._seen_tokens(logits.device)
            found = logits[seen]
            logits[seen] = torch.where(found > 0, found / asked.repetition_penalty, found * asked.repetition_penalty)
        if self._counts and (asked.presence_penalty or asked.frequency_penalty):
            said = torch.tensor(list(self._counts), device=logits.device)
            times = logits.new_tensor(list(self._counts.values()))
            logits[said] -= asked.frequency_penalty * times + asked.presence_penalty
        if self.follower is not None and not self.follower.done:
            self.follower.mask(logits)

    def uniform(self, ahead: int = 0) -> float:
        """The number between 0 and 1 that draws the next token, or the one ``ahead`` tokens after it."""
        assert self._numbers is not None  # only drawn with a temperature
        while len(self._ahead) <= ahead:
            self._ahead.append(self._numbers.random())
        return self._ahead[ahead]

    def take(self, token: int) -> None:
        """``token`` was drawn: go on after it."""
        if self._ahead:
            del self._ahead[0]
        asked = self.sampling
        if asked.presence_penalty or asked.frequency_penalty:
            self._counts[token] += 1
        if self._seen is not None and token not in self._known:
            self._known.add(token)
            self._seen = torch.cat([self._seen, self._seen.new_tensor([token])])
        if self.follower is not None and not self.follower.done:
            self.follower.take(token)

    def copy(self) -> RowSampler:
        """Another one at the same place, for another beam."""
        made = RowSampler(self.sampling, self._prompt, follower=self.follower.copy() if self.follower else None)
        made._numbers, made._ahead = self._numbers, list(self._ahead)
        made._seen, made._known, made._counts = self._seen, set(self._known), Counter(self._counts)
        return made

    def _seen_tokens(self, device: torch.device) -> torch.Tensor:
        if self._seen is None:
            self._known = set(self._prompt)
            self._seen = torch.tensor(sorted(self._known), dtype=torch.long, device=device)
        return self._seen


@dataclass(frozen=True)
class Drawn:
    """``tokens`` (rows,) and their ``log_probs`` under the model itself (temperature 1, nothing cut, nothing added).

    ``top``: for each row that asked for it, the likeliest tokens and their log-probabilities, best first.
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor
    top: dict[int, list[tuple[int, float]]] = field(default_factory=dict)


class DrawError(Exception):
    """The row in ``place`` cannot be drawn, for the reason that is its cause; the others can."""

    def __init__(self, place: int) -> None:
        super().__init__(f"row {place}")
        self.place = place


def draw(logits: torch.Tensor, rows: Sequence[RowSampler]) -> Drawn:
    """A token for each row of ``logits`` (rows, vocabulary); the samplers do not move (``RowSampler.take``). Raises DrawError."""
    logits = logits.float()
    scores = _adjusted(logits, rows)
    by_chance = [place for place, row in enumerate(rows) if row.sampling.temperature > 0.0]
    if len(by_chance) == len(rows):
        tokens = _random(scores, rows)
    else:
        tokens = scores.argmax(-1)
        if by_chance:
            tokens[by_chance] = _random(scores[by_chance], [rows[place] for place in by_chance])
    total = logits.logsumexp(-1)
    log_probs = logits.gather(1, tokens[:, None]).squeeze(1) - total
    top: dict[int, list[tuple[int, float]]] = {}
    for place, row in enumerate(rows):
        if row.sampling.logprobs is not None:
            values, ids = logits[place].topk(min(row.sampling.logprobs, logits.shape[1]))
            top[place] = list(zip(ids.tolist(), (values - total[place]).tolist(), strict=True))
    return Drawn(tokens, log_probs, top)


class Sampler:
    """Draws for rows that stay together: each goes on after what was drawn for it."""

    def __init__(self, rows: Sequence[RowSampler]) -> None:
        self.rows = list(rows)

    @classmethod
    def alike(cls, sampling: Sampling, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None = None) -> Sampler:
        """One row a prompt, all by ``sampling``; ``seeds``: one for each row, in place of ``sampling.seed``."""
        given: Sequence[int | None] = [None] * len(prompts) if seeds is None else seeds
        return cls([RowSampler(sampling, prompt, seed=seed) for prompt, seed in zip(prompts, given, strict=True)])

    def draw(self, logits: torch.Tensor) -> Drawn:
        """A token for each row, from (rows, vocabulary); the rows go on after them."""
        try:
            drawn = draw(logits, self.rows)
        except DrawError as error:
            raise error.__cause__ or error from None
        if any(row.changes or row.sampling.temperature > 0.0 for row in self.rows):
            for row, token in zip(self.rows, drawn.tokens.tolist(), strict=True):
                row.take(token)
        return drawn

    def keep(self, rows: Iterable[int]) -> None:
        """Go on with these rows only."""
        self.rows = [self.rows[place] for place in rows]


def _adjusted(logits: torch.Tensor, rows: Sequence[RowSampler]) -> torch.Tensor:
    changed = [place for place, row in enumerate(rows) if row.changes]
    if not changed:
        return logits
    scores = logits.clone()
    for place in changed:
        try:
            rows[place].adjust(scores[place])
        except Exception as error:
            raise DrawError(place) from error
    return scores


def _random(scores: torch.Tensor, rows: Sequence[RowSampler]) -> torch.Tensor:
    """Invert each row's cumulative distribution at its own uniform number."""
    vocabulary = scores.shape[1]
    asked = [row.sampling for row in rows]
    scores = scores / scores.new_tensor([one.temperature for one in asked])[:, None]
    uniform = torch.tensor([row.uniform() for row in rows], dtype=_wide(scores), device=scores.device)
    cut = [place for place, one in enumerate(asked) if one.top_p < 1.0 or 0 < one.top_k < vocabulary]
    if len(cut) == len(rows):
        return _cut(scores, asked, uniform)
    weights = scores.softmax(-1)
    least = scores.new_tensor([one.min_p for one in asked])[:, None]
    if any(one.min_p for one in asked):
        weights = weights.masked_fill(weights < least * weights.amax(-1, keepdim=True), 0.0)
    tokens = _invert(weights, uniform)
    if cut:
        tokens[cut] = _cut(scores[cut], [asked[place] for place in cut], uniform[cut])
    return tokens


def _cut(scores: torch.Tensor, asked: Sequence[Sampling], uniform: torch.Tensor) -> torch.Tensor:
    """Draw among the ``top_k`` likeliest, of these the fewest that hold ``top_p`` of their probability, of these those above ``min_p``.

    Few tokens are looked at first; a row that needs more is done again by itself, so that others do not change how it is sorted.
    """
    vocabulary = scores.shape[1]
    most = [one.top_k or vocabulary for one in asked]
    size = min(_LIKELY, vocabulary)
    values, tokens = scores.topk(size, dim=-1)
    top_k = torch.tensor(most, device=scores.device)[:, None]
    places = torch.arange(size, device=scores.device)[None]
    inside = values.masked_fill(places >= top_k, -torch.inf)
    normaliser = inside.logsumexp(-1, keepdim=True)
    if any(k >= vocabulary for k in most):
        normaliser = torch.where(top_k >= vocabulary, scores.logsumexp(-1, keepdim=True), normaliser)
    kept, held = _kept((inside - normaliser).exp(), asked)
    found = tokens.gather(1, _invert(kept, uniform)[:, None]).squeeze(1)
    for place, (one, k) in enumerate(zip(asked, most, strict=True)):
        if size < vocabulary and k > size and (k < vocabulary or float(held[place]) < one.top_p):
            values, tokens = scores[place : place + 1].topk(min(k, vocabulary), dim=-1)
            kept, _ = _kept(values.softmax(-1), [one])
            found[place] = tokens[0, _invert(kept, uniform[place : place + 1])[0]]
    return found


def _kept(probabilities: torch.Tensor, asked: Sequence[Sampling]) -> tuple[torch.Tensor, torch.Tensor]:
    """``probabilities`` (rows, tokens; best first) with 0 where ``top_p`` or ``min_p`` cut; and how much each row held before (rows,)."""
    top_p = probabilities.new_tensor([one.top_p for one in asked])[:, None]
    least = probabilities.new_tensor([one.min_p for one in asked])[:, None]
    reached = probabilities.cumsum(-1)
    out = (reached - probabilities >= top_p - _TOLERANCE) & (top_p < 1.0)
    out |= probabilities < least * probabilities[:, :1]
    out[:, 0] = False
    return probabilities.masked_fill(out, 0.0), reached[:, -1]


def _wide(like: torch.Tensor) -> torch.dtype:
    return torch.float32 if like.device.type == "mps" else torch.float64  # mps has no float64


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """For each row the first index whose cumulative share of ``weights`` exceeds ``uniform``."""
    cumulative = weights.to(uniform.dtype).cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    last = (weights > 0).cumsum(-1).argmax(-1)  # rounding must not step past the last possible token
    return torch.minimum(found, last)
