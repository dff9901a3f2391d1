"""Beam search: the likeliest whole answer among many that are kept in view, instead of one token after the other.

At each step every beam is continued by every token, and the best continuations over all beams go on (Graves 2012, "Sequence transduction with
recurrent neural networks", section 3.2; Sutskever et al. 2014, section 3.2). Answers of different lengths are compared by the mean
log-probability of their tokens, the one that ends them included. A prompt is done when as many answers have ended as there are beams and
none that still grows is better, by its mean so far, than the worst of them: the rule of transformers with its default settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from luthier.core.engine import Sampling
from luthier.models.generate import Answering
from luthier.models.sample import RowSampler


@dataclass(frozen=True)
class Beam:
    """An answer in view. ``score`` sums the log-probabilities by which beams are compared (penalties and constraints are in them),
    ``log_probs`` are the model's own; ``top`` the likeliest tokens at each place, where they are asked for."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    top: tuple[list[tuple[int, float]], ...]
    score: float
    sampler: RowSampler

    @property
    def mean(self) -> float:
        """What answers of different lengths are compared by."""
        return self.score / len(self.tokens)


@dataclass
class _Prompt:
    """The search for one prompt's answer."""

    limit: int
    live: list[Beam]
    ended: list[Beam] = field(default_factory=list)
    done: bool = False


class BeamSearch:
    """The searches for a batch of prompts. ``samplers`` say how logits are changed before they are compared; nothing is drawn.

    ``batch`` is what ``models.generate.Answering`` takes besides, without copies.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        samplers: Sequence[RowSampler],
        limits: Sequence[int],
        stop_ids: Iterable[int],
        device: torch.device,
        **batch: Any,
    ) -> None:
        self.beams = samplers[0].sampling.beams
        self._stop_ids = frozenset(stop_ids)
        self._device = device
        asked = Sampling(max_new_tokens=max(limits))
        self._answering = Answering(prompts, asked, device, copies=self.beams, **batch)
        self._prompts = [
            _Prompt(limit, [Beam((), (), (), 0.0, sampler)]) for limit, sampler in zip(limits, samplers, strict=True)
        ]

    @property
    def done(self) -> bool:
        """True when every prompt has its answer."""
        return all(prompt.done for prompt in self._prompts)

    @property
    def found(self) -> list[Beam]:
        """The best answer to each prompt; its last token is the one that ended it, if it ended."""
        return [max(prompt.ended or prompt.live, key=lambda beam: beam.mean) for prompt in self._prompts]

    @torch.inference_mode()
    def step(self, module: Any) -> None:
        """One more token of every beam."""
        logits = self._answering.scores(module).float()
        place_of = {row: place for place, row in enumerate(self._answering.rows)}
        parents, tokens = list(range(len(logits))), [0] * len(logits)
        for number, prompt in enumerate(self._prompts):
            if prompt.done:
                continue
            places = [place_of[number * self.beams + beam] for beam in range(self.beams)]
            followed = self._continue(prompt, logits[places[: len(prompt.live)]])
            for place, (parent, beam) in zip(places, followed, strict=False):
                parents[place], tokens[place] = places[parent], beam.tokens[-1]
            if prompt.done:
                self._answering.finish(number * self.beams + beam for beam in range(self.beams))
        self._answering.take(torch.tensor(tokens, device=self._device), logits.new_zeros(len(tokens)))
        self._answering.reorder(parents)

    def _continue(self, prompt: _Prompt, logits: torch.Tensor) -> list[tuple[int, Beam]]:
        """The beams that go on, each with the number of the one that it continues; the others are in ``prompt.ended``."""
        scores = logits.clone()
        for beam, row in zip(prompt.live, scores, strict=True):
            beam.sampler.adjust(row)
        scores = scores.log_softmax(-1)
        own = logits.log_softmax(-1)
        totals = scores + scores.new_tensor([beam.score for beam in prompt.live])[:, None]
        # so many that enough are left where all of the best end
        count = min(self.beams * (max(1, len(self._stop_ids)) + 1), totals.numel())
        values, places = totals.flatten().topk(count)
        going: list[tuple[int, Beam]] = []
        for rank, (value, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
            if value == -torch.inf or (len(going) == self.beams and rank >= self.beams):
                break  # not allowed by a constraint, or no longer among the best
            parent, token = divmod(place, totals.shape[1])
            beam = self._grown(prompt.live[parent], token, value, own[parent])
            if token in self._stop_ids or beam.sampler.done or len(beam.tokens) == prompt.limit:
                if rank < self.beams:
                    prompt.ended.append(beam)
            elif len(going) < self.beams:
                going.append((parent, beam))
        prompt.ended = sorted(prompt.ended, key=lambda beam: -beam.mean)[: self.beams]
        prompt.live = [beam for _, beam in going] or prompt.live
        full = len(prompt.ended) == self.beams
        prompt.done = not going or (full and prompt.live[0].mean <= prompt.ended[-1].mean)
        return going

    def _grown(self, beam: Beam, token: int, score: float, own: torch.Tensor) -> Beam:
        """``beam`` with one more token."""
        sampler = beam.sampler.copy()
        sampler.take(token)
        top = beam.top
        if (most := sampler.sampling.logprobs) is not None:
            values, ids = own.topk(min(most, len(own)))
            top = (*top, list(zip(ids.tolist(), values.tolist(), strict=True)))
        return Beam((*beam.tokens, token), (*beam.log_probs, float(own[token])), top, score, sampler)
