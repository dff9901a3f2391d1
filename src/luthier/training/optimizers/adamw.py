"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).

The default. Each buffer is one flat tensor to torch's fused kernel, so that a step on hundreds of small LoRA matrices is a handful of
large vector operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from luthier.core.catalog import EntryConfig
from luthier.training.optimizers._update import Buffer, Cost, Trained, parameter_of, total

PAPER = "Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101"

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Config(EntryConfig):
    """``beta1`` and ``beta2`` are the decays of the two moments, ``epsilon`` keeps the divisor from zero."""

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)


def build(buffers: Sequence[Buffer], config: Config) -> AdamW:
    """The rule for ``buffers``."""
    return AdamW(buffers, config)


def cost(trained: Sequence[Trained], config: Config) -> Cost:
    """Two fp32 moments a parameter."""
    return Cost(8 * total(trained), 0, 20.0 * total(trained))


class AdamW:
    """torch's AdamW on flat buffers."""

    def __init__(self, buffers: Sequence[Buffer], config: Config) -> None:
        self._buffers = list(buffers)
        self._adam = torch.optim.AdamW(
            [
                {"params": [parameter_of(each.masters, each.gradients)], "weight_decay": each.weight_decay}
                for each in buffers
            ],
            lr=0.0,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            fused=True,
        )

    def step(self, rate: float) -> None:
        """See ``Update``."""
        for options in self._adam.param_groups:
            options["lr"] = rate
        self._adam.step()

    def state(self) -> dict[str, Tensor]:
        """Both moments by parameter, the step count by buffer."""
        out = {}
        for index, (buffer, options) in enumerate(zip(self._buffers, self._adam.param_groups, strict=True)):
            moments = self._adam.state[options["params"][0]]
            out[f"step.{index}"] = moments["step"].reshape(1) if moments else torch.zeros(1)
            for kind in _MOMENTS if moments else ():
                out |= {f"{kind}.{name}": piece for name, piece in buffer.cut(moments[kind]).items()}
        return out

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state``. Raises KeyError when ``state`` is of other parameters."""
        for index, (buffer, options) in enumerate(zip(self._buffers, self._adam.param_groups, strict=True)):
            count = state[f"step.{index}"]
            if not float(count):
                continue
            moments = {kind: torch.zeros_like(buffer.masters) for kind in _MOMENTS}
            for kind, flat in moments.items():
                for name, piece in buffer.cut(flat).items():
                    piece.copy_(state[f"{kind}.{name}"])
            self._adam.state[options["params"][0]] = {"step": count[0].clone().to(buffer.masters.device), **moments}
