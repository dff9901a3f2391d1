"""Adafactor: the second moment of a matrix as the product of a row and a column (Shazeer and Stern 2018, algorithm 4).

The implementation is that of transformers. The learning rate is that of AdamW by default: a step is ``learning_rate`` times an update whose
root mean square is at most ``clip_threshold``. ``scale_parameter`` makes it relative to the root mean square of the weights, as in the
paper, and wants a rate of about 1e-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.training.optimizers._torch import TorchUpdate, groups
from luthier.training.optimizers._update import Buffer, Cost, Trained, largest, total

PAPER = "Shazeer and Stern 2018, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, https://arxiv.org/abs/1804.04235"


class Config(EntryConfig):
    """``beta1`` adds a first moment (4 bytes a parameter), 0 has none. The second moment's decay is 1 - step^``decay_rate``.
    ``epsilon1`` is added to squared gradients, ``epsilon2`` is the least scale of a parameter."""

    beta1: float = Field(0.0, ge=0, lt=1)
    decay_rate: float = Field(-0.8, lt=0)
    clip_threshold: float = Field(1.0, gt=0)
    scale_parameter: bool = False
    epsilon1: float = Field(1e-30, gt=0)
    epsilon2: float = Field(1e-3, gt=0)


def build(buffers: Sequence[Buffer], config: Config) -> TorchUpdate:
    """The rule for ``buffers``."""
    from transformers.optimization import Adafactor

    named = {name: parameter for each in buffers for name, parameter in each.parameters().items()}
    return TorchUpdate(
        named,
        Adafactor(
            groups(buffers, named),
            lr=0.0,
            eps=(config.epsilon1, config.epsilon2),
            clip_threshold=config.clip_threshold,
            decay_rate=config.decay_rate,
            beta1=config.beta1 or None,
            scale_parameter=config.scale_parameter,
            relative_step=False,
            warmup_init=False,
        ),
    )


def cost(trained: Sequence[Trained], config: Config) -> Cost:
    """A row and a column of a matrix, each entry of a vector. The update of one parameter exists up to three times while it is made."""
    state = 0
    for each in trained:
        *rows, columns = each.shape
        state += prod(rows) + prod(rows[:-1]) * columns if rows else columns
    if config.beta1:
        state += total(trained)
    return Cost(4 * state, 12 * largest(trained), 20.0 * total(trained))
