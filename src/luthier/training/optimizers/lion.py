"""Lion: the sign of a momentum decides (Chen et al. 2023, algorithm 2).

One number a parameter, and every weight moves by the learning rate itself, so that it wants a third to a tenth of AdamW's rate, and the
weight decay as many times larger (section 5 of the paper).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.training.optimizers._update import Buffer, Cost, Trained, total

PAPER = "Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, https://arxiv.org/abs/2302.06675"

_PIECE = 2**20
_PREFIX = "state.momentum."


class Config(EntryConfig):
    """``beta1`` mixes momentum and gradient for the step, ``beta2`` for the momentum that is kept."""

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)


def build(buffers: Sequence[Buffer], config: Config) -> Lion:
    """The rule for ``buffers``."""
    return Lion(buffers, config)


def cost(trained: Sequence[Trained], config: Config) -> Cost:
    """One fp32 number a parameter."""
    return Cost(4 * total(trained), 4 * min(_PIECE, total(trained)), 10.0 * total(trained))


class Lion:
    """Lion on flat buffers, a piece at a time."""

    def __init__(self, buffers: Sequence[Buffer], config: Config) -> None:
        self._config = config
        self._buffers = [(each, torch.zeros_like(each.masters)) for each in buffers]

    def step(self, rate: float) -> None:
        """See ``Update``."""
        beta1, beta2 = self._config.beta1, self._config.beta2
        for buffer, momentum in self._buffers:
            pieces = (torch.split(flat, _PIECE) for flat in (buffer.masters, buffer.gradients, momentum))
            for masters, gradients, kept in zip(*pieces, strict=True):
                direction = (kept * beta1).add_(gradients, alpha=1.0 - beta1).sign_()
                masters.mul_(1.0 - rate * buffer.weight_decay).add_(direction, alpha=-rate)
                kept.mul_(beta2).add_(gradients, alpha=1.0 - beta2)

    def state(self) -> dict[str, Tensor]:
        """The momentum by parameter."""
        return {
            _PREFIX + name: piece for buffer, momentum in self._buffers for name, piece in buffer.cut(momentum).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``. Raises KeyError when ``state`` is of other parameters."""
        for buffer, momentum in self._buffers:
            for name, piece in buffer.cut(momentum).items():
                piece.copy_(state[_PREFIX + name])
