"""SGD with momentum (Sutskever et al. 2013), its weight decay decoupled (Loshchilov and Hutter 2019, algorithm 1).

One number a parameter, none with ``momentum: 0``. It wants a learning rate some hundred times that of AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.training.optimizers._torch import TorchUpdate
from luthier.training.optimizers._update import Buffer, Cost, Trained, parameter_of, total

PAPER = "Sutskever et al. 2013, On the importance of initialization and momentum in deep learning, https://proceedings.mlr.press/v28/sutskever13.html"


class Config(EntryConfig):
    """``momentum`` is the share of the last step that goes on; ``nesterov`` looks ahead along it."""

    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _looks_ahead(self) -> Config:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0")
        return self


def build(buffers: Sequence[Buffer], config: Config) -> Sgd:
    """The rule for ``buffers``."""
    return Sgd(buffers, config)


def cost(trained: Sequence[Trained], config: Config) -> Cost:
    """One fp32 number a parameter, with momentum."""
    return Cost(4 * total(trained) if config.momentum else 0, 0, 6.0 * total(trained))


class Sgd:
    """torch's SGD on flat buffers."""

    def __init__(self, buffers: Sequence[Buffer], config: Config) -> None:
        named = {f"buffer{index}": parameter_of(each.masters, each.gradients) for index, each in enumerate(buffers)}
        self._buffers = list(buffers)
        self._inner = TorchUpdate(
            named, torch.optim.SGD(named.values(), lr=0.0, momentum=config.momentum, nesterov=config.nesterov)
        )

    def step(self, rate: float) -> None:
        """See ``Update``."""
        for buffer in self._buffers:
            if buffer.weight_decay:
                buffer.masters.mul_(1.0 - rate * buffer.weight_decay)
        self._inner.step(rate)

    def state(self) -> dict[str, Tensor]:
        """The momentum of each buffer."""
        return self._inner.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``."""
        self._inner.load_state(state)
