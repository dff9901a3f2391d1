"""Parallel adapters: a bottleneck network beside the feed-forward of every block, from its input to its output.

He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", section 3.3 and table 1: h + s f(x W_down) W_up, with x
the input of the feed-forward, h its output and s = 4 (section 4.1 scales the feed-forward's adapter like LoRA). W_up is zero at the
start. x is what the feed-forward's first linear layer is given, after the norm where a model normalises first, and the result is added to
what its second linear layer returns, before the residual sum. Encoder-decoders get it in both stacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.methods import _bottleneck
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = (
    "He et al. 2022, Towards a Unified View of Parameter-Efficient Transfer Learning, https://arxiv.org/abs/2110.04366"
)
FAMILY = "additive"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "no"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 5e-4},
    "encoder": {"learning_rate": 2e-3},
    "encoder-decoder": {"learning_rate": 5e-4},
}


class Config(EntryConfig):
    """``bottleneck``: units of each adapter. ``reduction``: the model's width over it, when ``bottleneck`` is left out (rounded down).

    ``scale`` s; ``learn_scale``: train it, one number for each adapter, from ``scale`` on. ``activation``: the nonlinearity f. ``dropout`` on the units.
    ``norm``: none, or a layer norm of the adapter's own before its first or after its second matrix. ``blocks``: numbers of the blocks
    that get an adapter, from 0; left out, all.
    """

    bottleneck: int | None = Field(None, ge=1)
    reduction: float = Field(2.0, ge=1)
    scale: float = Field(4.0, gt=0)
    learn_scale: bool = False
    activation: _bottleneck.Activation = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    norm: _bottleneck.Norm = "none"
    blocks: list[int] | None = None

    _size = model_validator(mode="after")(_bottleneck.one_size)


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the adapters in. Raises InputError for too wide a bottleneck, UnsupportedError for models without one feed-forward a block."""
    sources, width = _bottleneck.beside_feed_forward(inner_of(model), config.blocks, method="parallel_adapter")
    return _bottleneck.insert(
        model,
        "parallel_adapter",
        sources,
        placement="parallel",
        sources=sources,
        size=_bottleneck.size_of(width, config),
        scale=config.scale,
        learn_scale=config.learn_scale,
        activation=config.activation,
        dropout=config.dropout,
        norm=config.norm,
    )


def trained_parameters(module: Any, config: Config) -> int:
    """2 d k + d + k for each block (d the width, k the units), and one for each scale that is learned."""
    sources, width = _bottleneck.beside_feed_forward(module, config.blocks, method="parallel_adapter")
    size = _bottleneck.size_of(width, config)
    return len(sources) * _bottleneck.plain_parameters(width, size, norm=config.norm, learn_scale=config.learn_scale)
