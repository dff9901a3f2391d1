"""Mix-and-match adapter: a short learned prefix in every attention and a scaled parallel adapter at every feed-forward.

He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", section 4.6: prefix tuning is the better way with few parameters in
attention, so it gets l = 30 keys and values (equation 6), and most parameters go to the feed-forward, h + s f(x W_down) W_up with s = 4. The
paper's 512 units are half the width of its models, so here they follow the width. P_k and P_v are trained as they are, without the network that
makes them in Li and Liang 2021. The adapters start at zero, but the prefix takes some attention from the first step: before training outputs
are near the base's, not equal to it. Encoder-decoders get prefixes in all three kinds of attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.methods import _bottleneck
from luthier.methods._parts import Sublayer
from luthier.methods._peft import task_type, wrap
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = (
    "He et al. 2022, Towards a Unified View of Parameter-Efficient Transfer Learning, https://arxiv.org/abs/2110.04366"
)
FAMILY = "hybrid"
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
    """``prefix_length`` l: keys and values learned for each attention. ``bottleneck``: units of each adapter at a feed-forward. ``reduction``: the
    model's width over it, when ``bottleneck`` is left out (rounded down).

    ``scale`` s of the adapters; ``learn_scale``: train it, one number for each, from ``scale`` on. ``activation`` f; ``dropout`` on the units.
    ``blocks``: numbers of the blocks that are changed, from 0; left out, all.
    """

    prefix_length: int = Field(30, ge=1)
    bottleneck: int | None = Field(None, ge=1)
    reduction: float = Field(2.0, ge=1)
    scale: float = Field(4.0, gt=0)
    learn_scale: bool = False
    activation: _bottleneck.Activation = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    blocks: list[int] | None = None

    _size = model_validator(mode="after")(_bottleneck.one_size)


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put prefixes and adapters in. Raises InputError for too wide a bottleneck or a block that is not there, UnsupportedError for models whose
    attention and feed-forward cannot be told apart, or whose attention is computed in a way of its own."""
    from luthier.models import tuners

    attentions, sources, width = _places(inner_of(model), config)
    queries = [part.first for part in attentions]
    settings = tuners.tuner("mam").CONFIG(
        target_modules=sorted({*queries, *sources, *sources.values()}),
        task_type=task_type(model),
        queries=queries,
        prefix_length=config.prefix_length,
        placement="parallel",
        sources=sources,
        size=_bottleneck.size_of(width, config),
        scale=config.scale,
        learn_scale=config.learn_scale,
        activation=config.activation,
        dropout=config.dropout,
    )
    return wrap(model, settings, method="mam")


def _places(module: Any, config: Config) -> tuple[list[Sublayer], dict[str, str], int]:
    """Attentions, second linear layer of each feed-forward -> the first, and the width."""
    kinds = [_bottleneck.ATTENTION]
    if hasattr(module, "encoder") and hasattr(module, "decoder"):
        kinds.append(_bottleneck.CROSS_ATTENTION)
    attentions = _bottleneck.parts(module, kinds, config.blocks, method="mam")
    return attentions, *_bottleneck.beside_feed_forward(module, config.blocks, method="mam")


def trained_parameters(module: Any, config: Config) -> int:
    """2 l k of each attention (k the width of its keys), 2 d b + d + b of each feed-forward (d the width, b the units)."""
    attentions, sources, width = _places(module, config)
    size = _bottleneck.size_of(width, config)
    each = _bottleneck.plain_parameters(width, size, norm="none", learn_scale=config.learn_scale)
    return _bottleneck.prefix_parameters(module, attentions, config.prefix_length) + len(sources) * each
