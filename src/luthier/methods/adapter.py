"""Adapters: small bottleneck networks after the attention and after the feed-forward of every block; the base stays frozen.

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1 and figure 2: each stands between the sub-layer's output
projection and the residual sum, y + W_up f(W_down y + b) + b, with a skip connection of its own; the layer norms are trained too. The
paper starts near the identity (a normal of 0.01); here W_up is zero, so training starts exactly from the base. In encoder-decoders they
follow self-attention and feed-forward of both stacks, and cross-attention only if asked for (``cross_attention``), as in the papers that
put adapters into T5 (Karimi Mahabadi et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.methods import _bottleneck
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = "Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP, https://arxiv.org/abs/1902.00751"
FAMILY = "additive"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "no"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-3},
    "encoder": {"learning_rate": 3e-3},
    "encoder-decoder": {"learning_rate": 1e-3},
}


class Config(EntryConfig):
    """``bottleneck``: units of each adapter. ``reduction``: the model's width over it, when ``bottleneck`` is left out (rounded down).

    ``activation``: the nonlinearity f. ``dropout`` on the units. ``norm``: none, or a layer norm of the adapter's own before its first or after its second
    matrix. ``train_norms``: train the model's layer norms too, as the paper does. ``targets``: auto (the output projections of attention
    and feed-forward), or names (or ends of names) of linear layers that return to the model's width, such as [down_proj]. ``blocks``:
    numbers of the blocks that get adapters, from 0; left out, all. ``cross_attention``: also after an encoder-decoder's cross-attention.
    """

    bottleneck: int | None = Field(None, ge=1)
    reduction: float = Field(16.0, ge=1)
    activation: _bottleneck.Activation = "gelu"
    dropout: float = Field(0.0, ge=0, lt=1)
    norm: _bottleneck.Norm = "none"
    train_norms: bool = True
    targets: Literal["auto"] | list[str] = "auto"
    blocks: list[int] | None = None
    cross_attention: bool = False

    _size = model_validator(mode="after")(_bottleneck.one_size)


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the adapters in. Raises InputError for targets that match nothing or too wide a bottleneck, UnsupportedError for other models."""
    targets, width = _targets(inner_of(model), config)
    return _bottleneck.insert(
        model,
        "adapter",
        targets,
        size=_bottleneck.size_of(width, config),
        norms=_bottleneck.trained_norms(model, config.train_norms),
        activation=config.activation,
        dropout=config.dropout,
        norm=config.norm,
    )


def _targets(module: Any, config: Config) -> tuple[list[str], int]:
    kinds = [_bottleneck.ATTENTION, _bottleneck.FEED_FORWARD]
    kinds += [_bottleneck.CROSS_ATTENTION] * config.cross_attention
    found = _bottleneck.outputs(module, config.targets, kinds, config.blocks, method="adapter")
    return list(found), _bottleneck.one_width(found.values(), method="adapter")


def trained_parameters(module: Any, config: Config) -> int:
    """2 d k + d + k for each adapter (d the width, k the units), and the norms."""
    targets, width = _targets(module, config)
    size = _bottleneck.size_of(width, config)
    each = _bottleneck.plain_parameters(width, size, norm=config.norm)
    return len(targets) * each + (_bottleneck.norm_parameters(module) if config.train_norms else 0)
