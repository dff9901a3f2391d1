"""Language adapters: bottleneck networks in every block and an invertible one at the embeddings, trained on text of a language.

Pfeiffer et al. 2020, "MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer", section 2.2: a task's adapter is trained on
top of a frozen language adapter (``method=pfeiffer_adapter method.on=NAME``), and another language's is put under it afterwards
(``luthier adapters swap-language``): the task is then done in a language that it was never trained in. The invertible adapter is NICE
(Dinh et al. 2015): y1 = x1 + F(x2), y2 = x2 + G(y1). A decoder whose head is its embeddings has the inverse before the head, so the same
map leads in and out; where the head is a matrix of its own there is nothing to undo, and encoders have no such head here. Everything
starts as the base. Encoder-decoders do not take it: they read and write through two stacks, of which the paper says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.methods import _bottleneck, _stack
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = (
    "Pfeiffer et al. 2020, MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer, "
    "https://arxiv.org/abs/2005.00052"
)
FAMILY = "additive"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "no"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-4},
    "encoder": {"learning_rate": 1e-3},
}


class Config(EntryConfig):
    """``bottleneck``: units of each adapter. ``reduction``: the model's width over it, when ``bottleneck`` is left out (rounded down).

    ``activation`` f; ``dropout`` on the units. ``invertible``: reduction of F and G, from half of the width, in the invertible adapter;
    null leaves that out. ``blocks``: numbers of the blocks that get an adapter, from 0; left out, all.
    """

    bottleneck: int | None = Field(None, ge=1)
    reduction: float = Field(2.0, ge=1)
    activation: _bottleneck.Activation = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    invertible: float | None = Field(2.0, ge=1)
    blocks: list[int] | None = None

    _size = model_validator(mode="after")(_bottleneck.one_size)


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the adapters in. Raises InputError for too wide a bottleneck, UnsupportedError where a block's norms are not one for each part."""
    found, width = _bottleneck.feed_forwards(inner_of(model), config.blocks, method="language_adapter")
    return _stack.insert_language(
        model,
        "language_adapter",
        **_bottleneck.after_feed_forward(found),
        invertible=config.invertible or 0.0,
        size=_bottleneck.size_of(width, config),
        activation=config.activation,
        dropout=config.dropout,
    )


def trained_parameters(module: Any, config: Config) -> int:
    """2 d k + d + k for each block (d the width, k the units); F and G at the embeddings, each two matrices with biases."""
    from luthier.models.tuners._composed import Coupling

    found, width = _bottleneck.feed_forwards(module, config.blocks, method="language_adapter")
    size = _bottleneck.size_of(width, config)
    ends = Coupling.count(width, config.invertible) if config.invertible else 0
    return len(found) * _bottleneck.plain_parameters(width, size, norm="none") + ends
