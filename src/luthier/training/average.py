"""An exponential moving average of the master weights (Polyak averaging), which is validated and kept in their place.

After t updates it is the mean of the weights after each of them, update i weighted with decay^(t-i) (Kingma and Ba 2015, section 7.2): their
bias-corrected average, so that the weights before training, which the first updates leave far behind, have no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from luthier.training.optimizer import Optimizer

_COUNT, _WEIGHT = "count", "weight."
_PIECE = 2**20


class Average:
    """The average of the weights of ``optimizer``, in fp32, as large as they are."""

    def __init__(self, optimizer: Optimizer, decay: float) -> None:
        self._optimizer, self._decay, self._count = optimizer, decay, 0
        self._flats = [torch.zeros_like(flat) for flat in optimizer.buffers()]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after an update in."""
        self._count += 1
        share = (1.0 - self._decay) / (1.0 - self._decay**self._count)
        for flat, masters in zip(self._flats, self._optimizer.buffers(), strict=True):
            flat.lerp_(masters, share)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While entered, the model's weights, and the optimizer's masters, are the average."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange average and weights; before the first update there is nothing to exchange."""
        if not self._count:
            return
        for flat, masters in zip(self._flats, self._optimizer.buffers(), strict=True):
            for one, other in zip(torch.split(flat, _PIECE), torch.split(masters, _PIECE), strict=True):
                kept = one.clone()
                one.copy_(other)
                other.copy_(kept)
        self._optimizer.publish()

    def state(self) -> dict[str, Tensor]:
        """The average by parameter, and the count of updates."""
        cut = self._optimizer.cut(self._flats)
        return {_COUNT: torch.tensor(self._count), **{_WEIGHT + name: piece for name, piece in cut.items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``. Raises KeyError when ``state`` is of other parameters."""
        self._count = int(state[_COUNT])
        for name, piece in self._optimizer.cut(self._flats).items():
            piece.copy_(state[_WEIGHT + name])
