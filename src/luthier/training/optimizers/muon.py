"""Muon: momentum made orthogonal by Newton-Schulz iterations, for the matrices of hidden layers (Jordan et al. 2024); AdamW for the rest.

The implementation of Muon is torch's. Its steps are scaled to the root mean square of AdamW's, 0.2 * sqrt(larger side) (Liu et al. 2025,
eq. 4), so that a learning rate of AdamW fits both; ``scale: original`` is that of Jordan, sqrt(max(1, rows / columns)), and wants about 0.02.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Literal

import torch
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import InputError
from luthier.training.optimizers._torch import TorchUpdate, adamw, groups
from luthier.training.optimizers._update import Buffer, Cost, Trained, largest, total

PAPER = "Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks, https://kellerjordan.github.io/posts/muon/"


class Config(EntryConfig):
    """``momentum`` (``nesterov`` looks ahead along it) and ``iterations`` of Newton-Schulz are of Muon; ``beta1``, ``beta2`` and ``epsilon``
    of the AdamW that has embeddings, heads and vectors."""

    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    iterations: int = Field(5, ge=1, lt=100)
    scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)


def build(buffers: Sequence[Buffer], config: Config) -> TorchUpdate:
    """The rule for ``buffers``. Raises InputError when no hidden matrix is trained."""
    named = {name: parameter for each in buffers for name, parameter in each.parameters().items()}
    hidden = frozenset[str]().union(*(each.hidden for each in buffers))
    matrices = {name: parameter for name, parameter in named.items() if name in hidden}
    rest = {name: parameter for name, parameter in named.items() if name not in hidden}
    _require_matrices(matrices)
    muon = torch.optim.Muon(
        groups(buffers, matrices),
        lr=0.0,
        momentum=config.momentum,
        nesterov=config.nesterov,
        ns_steps=config.iterations,
        adjust_lr_fn=config.scale,
    )
    others = adamw(buffers, rest, (config.beta1, config.beta2), config.epsilon)
    return TorchUpdate(named, muon, *others.optimizers)


def cost(trained: Sequence[Trained], config: Config) -> Cost:
    """One fp32 number for an entry of a matrix, two for others. An iteration multiplies m x n matrices, m <= n, in 4 m^2 n + 2 m^3.

    Raises InputError when no hidden matrix is trained.
    """
    matrices = [each for each in trained if each.hidden]
    _require_matrices(matrices)
    moments = 8 * total(trained) - 4 * total(matrices)
    products = sum(4.0 * min(each.shape) * each.size + 2.0 * min(each.shape) ** 3 for each in matrices)
    return Cost(moments, 12 * largest(matrices), config.iterations * products + 20.0 * total(trained))


def _require_matrices(matrices: Sized) -> None:
    if not matrices:
        raise InputError(
            "optimizer muon is for the matrices of hidden layers, and none of them is trained",
            hint="train.optimizer=adamw",
        )
