"""Pfeiffer adapters: one bottleneck network for each block, after the feed-forward; half of Houlsby's, and what AdapterFusion combines.

Pfeiffer et al. 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", section 3.1 and appendix A: of all places
and residual connections tried, one adapter after the feed-forward was best. With f the feed-forward's output and x the residual stream
that it is added to, a block of BERT, which normalises last, ends in LN(f + x + A(LN(f + x))), with the pretrained norm in both places
(AdapterHub's ``seq_bn``). In models that normalise first (Llama, GPT-2, T5) there is no norm to go through: f + x + A(f + x). A(v) = W_up
f(W_down v + b) + b as in Houlsby et al. 2019, with W_up zero at the start. Norms are not trained. Encoder-decoders get it in both stacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.core.errors import UnsupportedError
from luthier.methods import _bottleneck
from luthier.methods._parts import Sublayer
from luthier.methods._targets import linear_layers
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

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
    "encoder": {"learning_rate": 1e-3},
    "encoder-decoder": {"learning_rate": 1e-3},
}


class Config(EntryConfig):
    """``bottleneck``: units of each adapter. ``reduction``: the model's width over it, when ``bottleneck`` is left out (rounded down).

    ``activation`` f; ``dropout`` on the units. ``norm``: none, or a layer norm of the adapter's own before its first or after its second
    matrix. ``blocks``: numbers of the blocks that get an adapter, from 0; left out, all.
    """

    bottleneck: int | None = Field(None, ge=1)
    reduction: float = Field(16.0, ge=1)
    activation: Literal["relu", "gelu", "gelu_new", "silu", "tanh"] = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    norm: Literal["none", "before", "after"] = "none"
    blocks: list[int] | None = None

    @model_validator(mode="after")
    def _together(self) -> Config:
        _bottleneck.check_both(self.model_fields_set)
        return self


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the adapters in. Raises InputError for too wide a bottleneck, UnsupportedError where a block's norms are not one for each part."""
    found, width = _places(inner_of(model), config)
    norm_of = {part.output: str(part.norm) for part in found}
    first = found[0].norm_first
    return _bottleneck.insert(
        model,
        "pfeiffer_adapter",
        norm_of if first else norm_of.values(),
        placement="residual" if first else "norm",
        sources=norm_of if first else {},
        size=_bottleneck.size_of(width, config.bottleneck, config.reduction),
        activation=config.activation,
        dropout=config.dropout,
        norm=config.norm,
    )


def _places(module: Any, config: Config) -> tuple[list[Sublayer], int]:
    found = _bottleneck.parts(module, [_bottleneck.FEED_FORWARD], config.blocks, method="pfeiffer_adapter")
    unclear = [part.output for part in found if part.norm is None]
    if unclear:
        raise UnsupportedError(
            f"method pfeiffer_adapter needs one norm for each sub-layer; those around {unclear[0]} are others",
            hint=f"beside the feed-forward instead: method=adapter method.targets=[{unclear[0].rpartition('.')[2]}]",
        )
    layers = linear_layers(module)
    return found, _bottleneck.one_width([layers[part.output][1] for part in found], method="pfeiffer_adapter")


def trained_parameters(module: Any, config: Config) -> int:
    """2 d k + d + k for each block (d the width, k the units)."""
    found, width = _places(module, config)
    size = _bottleneck.size_of(width, config.bottleneck, config.reduction)
    return len(found) * _bottleneck.plain_parameters(width, size, norm=config.norm)
