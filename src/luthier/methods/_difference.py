"""Differences to a weight behind hard-concrete gates, and what happens to them around optimizer steps (``diff_pruning``)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_LOW, _HIGH = -1.5, 1.5
_OPEN = 5.0  # where every gate's alpha begins: open with near certainty
_FIXED = (
    1e4  # an alpha that no noise and no step takes anywhere: the gate is open, or with the other sign closed, for good
)


class Difference(nn.Module):
    """A parametrization: W0 + z * w. ``gate`` holds alpha / gate_rate, so that one learning rate moves alpha faster."""

    def __init__(self, weight: Tensor, gate_rate: float) -> None:
        super().__init__()
        self.rate = gate_rate
        self.difference = nn.Parameter(torch.zeros_like(weight))
        self.gate = nn.Parameter(torch.full_like(weight, _OPEN / gate_rate))

    def openness(self, gate: Tensor, *, draw: bool) -> Tensor:
        """z in [0, 1]: a draw of the hard-concrete distribution, or its value without noise (Louizos et al. 2018, equations 10, 11, 13)."""
        logit = gate.float() * self.rate
        if draw:
            uniform = torch.rand_like(logit).clamp_(1e-6, 1 - 1e-6)
            logit = logit + uniform.log() - (1 - uniform).log()
        return (logit.sigmoid() * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        return weight + self.difference * self.openness(self.gate, draw=self.training).to(weight.dtype)

    def changed(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in the flattened weight of the open gates, ascending, and what is there now."""
        with torch.no_grad():
            openness = self.openness(self.gate, draw=False)
            places = (openness.reshape(-1) > 0).nonzero()[:, 0]
            now = weight + self.difference * openness.to(weight.dtype)
            return places, now.reshape(-1)[places]


class Pruning:
    """The penalty on open gates, and the choice of the largest differences. All that it does is in the weights: it has no state."""

    def __init__(self, module: nn.Module, *, share: float, penalty: float, choose_at: float) -> None:
        self.share, self.penalty, self.choose_at = share, penalty, choose_at
        self._parts = {f"{name}.": part for name, part in module.named_modules() if isinstance(part, Difference)}

    def before(self, step: int, total: int, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Add the gradient of lambda * sum P(z > 0), where P(z > 0) = sigmoid(alpha - log(-low / high)) (equation 12 there)."""
        for prefix, part in self._parts.items():
            likely = (weights[prefix + "gate"] * part.rate - math.log(-_LOW / _HIGH)).sigmoid()
            gradients[prefix + "gate"].add_(likely * (1 - likely), alpha=self.penalty * part.rate)

    def after(self, step: int, total: int, weights: Mapping[str, Tensor]) -> None:
        """At its step, open the gates of the largest z * w of all targets for good, and close the others."""
        if step != max(1, int(self.choose_at * total)):
            return
        scores = []
        for prefix, part in self._parts.items():
            openness, difference = part.openness(weights[prefix + "gate"], draw=False), weights[prefix + "difference"]
            # where gates have closed on everything, the larger difference is still the better one to open
            scores.append((difference.abs() * (openness + 1e-6)).reshape(-1))
            difference.mul_(openness)
        flat = torch.cat(scores)
        signs = torch.full_like(flat, -1.0)
        signs[flat.topk(max(1, round(self.share * len(flat)))).indices] = 1.0
        start = 0
        for prefix, part in self._parts.items():
            gate = weights[prefix + "gate"]
            gate.copy_(signs[start : start + gate.numel()].view_as(gate) * (_FIXED / part.rate))
            start += gate.numel()

    def state(self) -> dict[str, Tensor]:
        """Nothing: what a resumed training needs is in the weights."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to load."""
