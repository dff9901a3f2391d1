"""Compacter: adapters whose matrices are sums of Kronecker products of a few shared small matrices and rank-one factors.

Karimi Mahabadi et al. 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", sections 3.2 and 4: both matrices of an adapter are
W = sum_i A_i kron (s_i t_i^T), i from 1 to n. The A_i, n by n, are one set for all layers, ways down and up alike; each matrix has its own
s_i and t_i, together as long as it has rows and columns. They stand where Houlsby's do, and the norms are trained too (the paper's code);
Compacter++ has those after the feed-forward only. The t_i of the ways up are zero at the start, so training starts exactly from the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.core.errors import InputError
from luthier.methods import _bottleneck
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = "Karimi Mahabadi et al. 2021, Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, https://arxiv.org/abs/2106.04647"
FAMILY = "additive"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "no"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 3e-3},
    "encoder": {"learning_rate": 3e-3},
    "encoder-decoder": {"learning_rate": 3e-3},
}


class Config(EntryConfig):
    """``n``: how many products are summed, and the side of the shared matrices; it must divide the model's width and ``bottleneck``.

    ``bottleneck``: units of each adapter. ``reduction``: the model's width over it, when ``bottleneck`` is left out (rounded down to a
    multiple of ``n``, at least ``n``). ``places``: both is Compacter, feed_forward is Compacter++. ``activation``: the nonlinearity f.
    ``dropout`` on the units. ``train_norms``: train the model's layer norms too. ``blocks``: numbers of the blocks that get adapters, from 0; left out, all.
    ``cross_attention``: also after an encoder-decoder's cross-attention.
    """

    n: int = Field(4, ge=1)
    bottleneck: int | None = Field(None, ge=1)
    reduction: float = Field(32.0, ge=1)
    places: Literal["both", "feed_forward"] = "both"
    activation: _bottleneck.Activation = "gelu_new"
    dropout: float = Field(0.0, ge=0, lt=1)
    train_norms: bool = True
    blocks: list[int] | None = None
    cross_attention: bool = False

    _size = model_validator(mode="after")(_bottleneck.one_size)

    @model_validator(mode="after")
    def _together(self) -> Config:
        if self.cross_attention and self.places == "feed_forward":
            raise ValueError("cross_attention adds places to both; Compacter++ (places feed_forward) has none there")
        return self


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the adapters in. Raises InputError for sizes that n does not divide, UnsupportedError for models without such blocks."""
    targets, _, size = _places(inner_of(model), config)
    return _bottleneck.insert(
        model,
        "compacter",
        targets,
        size=size,
        hypercomplex=config.n,
        norms=_bottleneck.trained_norms(model, config.train_norms),
        activation=config.activation,
        dropout=config.dropout,
    )


def _places(module: Any, config: Config) -> tuple[list[str], int, int]:
    """Targets, their width, and the units of each adapter."""
    kinds = [_bottleneck.ATTENTION] * (config.places == "both") + [_bottleneck.FEED_FORWARD]
    kinds += [_bottleneck.CROSS_ATTENTION] * config.cross_attention
    found = _bottleneck.outputs(module, "auto", kinds, config.blocks, method="compacter")
    width = _bottleneck.one_width(found.values(), method="compacter")
    if width % config.n:
        fits = [str(n) for n in range(1, min(width, 64) + 1) if width % n == 0]
        raise InputError(f"method.n must divide the model's width, {width}: one of {', '.join(fits)}; got {config.n}")
    return list(found), width, _bottleneck.size_of(width, config, multiple=config.n)


def trained_parameters(module: Any, config: Config) -> int:
    """3 (d + k) for each adapter (d the width, k the units): its factors 2 (d + k), its biases d + k; n^3 once; and the norms."""
    targets, width, size = _places(module, config)
    own = len(targets) * 3 * (width + size) + config.n**3
    return own + (_bottleneck.norm_parameters(module) if config.train_norms else 0)
