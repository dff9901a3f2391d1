"""Pfeiffer adapters: one bottleneck network for each block, after the feed-forward; half of Houlsby's, and what AdapterFusion combines.

Pfeiffer et al. 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", section 3.1 and appendix A: of all places
and residual connections tried, one adapter after the feed-forward was best. With f the feed-forward's output and x the residual stream
that it is added to, a block of BERT, which normalises last, ends in LN(f + x + A(LN(f + x))), with the pretrained norm in both places
(AdapterHub's ``seq_bn``). In models that normalise first (Llama, GPT-2, T5) there is no norm to go through: f + x + A(f + x). A(v) = W_up
f(W_down v + b) + b as in Houlsby et al. 2019, with W_up zero at the start. Norms are not trained. Encoder-decoders get it in both stacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.core.model import ModelRecord
from luthier.methods import _bottleneck, _stack
from luthier.methods._parts import Sublayer
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

if TYPE_CHECKING:
    from luthier.store.database import Store

PAPER = "Pfeiffer et al. 2021, AdapterFusion: Non-Destructive Task Composition for Transfer Learning, https://arxiv.org/abs/2005.00247"
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
    matrix. ``blocks``: numbers of the blocks that get an adapter, from 0; left out, all. ``on``: name of a tuned model made by
    language_adapter (or pfeiffer_adapter) on the same base, whose adapters stay frozen below the new ones: MAD-X (Pfeiffer et al.
    2020), section 2.2.2. ``luthier adapters swap-language`` puts what was trained on those of another language.
    """

    bottleneck: int | None = Field(None, ge=1)
    reduction: float = Field(16.0, ge=1)
    activation: _bottleneck.Activation = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    norm: _bottleneck.Norm = "none"
    blocks: list[int] | None = None
    on: str | None = None

    _size = model_validator(mode="after")(_bottleneck.one_size)


def needs(store: Store, base: ModelRecord, config: Config) -> list[dict[str, Any]]:
    """The adapter that this one goes on, looked up and checked. Raises NotFoundError, MismatchError, UnsupportedError."""
    return [] if config.on is None else [_stack.below(store, base, config.on)]


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the adapters in. Raises InputError for too wide a bottleneck, UnsupportedError where a block's norms are not one for each part."""
    found, width = _places(inner_of(model), config)
    return _stack.insert(
        model,
        "pfeiffer_adapter",
        on=config.on,
        **_bottleneck.after_feed_forward(found),
        size=_bottleneck.size_of(width, config),
        activation=config.activation,
        dropout=config.dropout,
        norm=config.norm,
    )


def _places(module: Any, config: Config) -> tuple[list[Sublayer], int]:
    return _bottleneck.feed_forwards(module, config.blocks, method="pfeiffer_adapter")


def trained_parameters(module: Any, config: Config) -> int:
    """2 d k + d + k for each block (d the width, k the units)."""
    found, width = _places(module, config)
    size = _bottleneck.size_of(width, config)
    return len(found) * _bottleneck.plain_parameters(width, size, norm=config.norm)
