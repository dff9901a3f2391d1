"""Drawing the next token from logits, for many rows at once.

Rows never influence one another: each has its own random generator, and its draw inverts its own cumulative distribution, so that an
answer does not depend on what else is in the batch. Order of the steps: repetition penalty (Keskar et al. 2019, CTRL, section 4.1),
temperature, top-k, top-p (Holtzman et al. 2020, nucleus sampling).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch

from luthier.core.engine import Sampling

_LIKELY = 256
"""The nucleus is looked for among so many tokens first; sorting a whole vocabulary is slow."""

_TOLERANCE = 1e-6
"""Sums of probabilities that should equal top_p may miss it by rounding."""


class Sampler:
    """Draws tokens for ``prompts`` (one row each) as ``sampling`` says; with a seed the same tokens every time.

    ``seeds``: one for each row, in place of ``sampling.seed``.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompts: Sequence[Sequence[int]],
        device: torch.device,
        seeds: Sequence[int] | None = None,
    ) -> None:
        self.sampling = sampling
        self._prompts = prompts
        self._seen: torch.Tensor | None = None
        self._device = device
        self._generators: list[torch.Generator] = []
        if sampling.temperature > 0:
            for row in range(len(prompts)):
                seed = sampling.seed if seeds is None else seeds[row]
                generator = torch.Generator()
                generator.manual_seed((secrets.randbits(63) if seed is None else seed) % 2**63)
                self._generators.append(generator)

    def draw(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (rows,) and their log-probabilities under the model itself (temperature 1, nothing cut), from (rows, vocabulary)."""
        logits = logits.float()
        scores = self._penalised(logits)
        tokens = self._random(scores) if self.sampling.temperature > 0 else scores.argmax(-1)
        log_probs = logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(-1)
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        return tokens, log_probs

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        chosen = rows.tolist()
        self._prompts = [self._prompts[i] for i in chosen]
        self._generators = [self._generators[i] for i in chosen] if self._generators else []
        if self._seen is not None:
            self._seen = self._seen[rows]

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        penalty = self.sampling.repetition_penalty
        if penalty == 1.0:
            return logits
        if self._seen is None:
            self._seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            for row, ids in enumerate(self._prompts):
                self._seen[row, torch.tensor(list(ids), device=logits.device)] = True
        weakened = torch.where(logits > 0, logits / penalty, logits * penalty)
        return torch.where(self._seen, weakened, logits)

    def _random(self, scores: torch.Tensor) -> torch.Tensor:
        """Invert each row's cumulative distribution at its own uniform number."""
        scores = scores / self.sampling.temperature
        uniform = torch.stack([torch.rand((), generator=g) for g in self._generators]).to(scores.device)
        top_k, top_p = self.sampling.top_k or scores.shape[1], self.sampling.top_p
        if top_p < 1.0 or top_k < scores.shape[1]:
            return self._cut(scores, min(top_k, scores.shape[1]), top_p, uniform)
        return _invert(scores.softmax(-1), uniform)

    def _cut(self, scores: torch.Tensor, top_k: int, top_p: float, uniform: torch.Tensor) -> torch.Tensor:
        """Draw among the ``top_k`` likeliest, and of these the fewest that hold ``top_p`` of their probability."""
        normaliser = scores.logsumexp(-1, keepdim=True) if top_k == scores.shape[1] else None
        size = min(_LIKELY, top_k) if top_p < 1.0 else top_k
        while True:
            values, tokens = scores.topk(size, dim=-1)
            if normaliser is None:
                within = scores.topk(top_k, dim=-1).values if size < top_k else values
                normaliser = within.logsumexp(-1, keepdim=True)
            probabilities = (values - normaliser).exp()
            before = probabilities.cumsum(-1) - probabilities
            if size == top_k or bool((before[:, -1] + probabilities[:, -1] >= top_p).all()):
                break
            size = top_k
        kept = probabilities.masked_fill(before >= top_p - _TOLERANCE, 0.0)
        return tokens.gather(1, _invert(kept, uniform)[:, None]).squeeze(1)


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """For each row the first index whose cumulative share of ``weights`` exceeds ``uniform``."""
    wide = torch.float32 if weights.device.type == "mps" else torch.float64  # mps has no float64
    cumulative = weights.to(wide).cumsum(-1)
    target = uniform[:, None].to(wide) * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    last = (weights > 0).cumsum(-1).argmax(-1)  # rounding must not step past the last possible token
    return torch.minimum(found, last)
