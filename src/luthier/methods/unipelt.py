"""UniPELT: LoRA, prefix and adapter together, each behind a learned gate.

Mao et al. 2022, "UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning", section 3.3: LoRA on queries and values, a prefix in every
attention, an adapter after every feed-forward; a gate sigmoid(w x + b) on the input of each says how much of it counts. In the paper a
gate is the mean over all tokens of a text, and so it is here for encoders, padding left out. In decoders that mean would let a token depend
on those after it, and a model would answer otherwise than it was trained; there each token has a gate of its own. P_k and P_v are trained
as they are, without the network that makes them in Li and Liang 2021. LoRA and adapters start at zero, but the prefix takes some attention from
the first step: before training outputs are near the base's, not equal to it. Encoder-decoders are not offered: the paper has none, and their
cross-attention reads two texts, for which it defines no gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.core.errors import UnsupportedError
from luthier.methods import _bottleneck
from luthier.methods._parts import Sublayer
from luthier.methods._peft import check_rank, task_type, wrap
from luthier.methods._targets import linear_layers
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = (
    "Mao et al. 2022, UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning, "
    "https://arxiv.org/abs/2110.07577"
)
FAMILY = "hybrid"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "no"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-3},
    "encoder": {"learning_rate": 3e-3},
}
_QUERIES, _VALUES = ("q_proj", "query", "q_lin", "q"), ("v_proj", "value", "v_lin", "v")


class Config(EntryConfig):
    """``rank`` r of LoRA and ``alpha`` its scale (alpha / r). ``prefix_length`` l: keys and values learned for each attention. ``bottleneck``: units of
    each adapter. ``reduction``: the model's width over it, when ``bottleneck`` is left out (rounded down). ``activation`` of the adapters.
    ``blocks``: numbers of the blocks that are changed, from 0; left out, all.
    """

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    prefix_length: int = Field(10, ge=1)
    bottleneck: int | None = Field(None, ge=1)
    reduction: float = Field(16.0, ge=1)
    activation: _bottleneck.Activation = "relu"
    blocks: list[int] | None = None

    _size = model_validator(mode="after")(_bottleneck.one_size)


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the three in, with their gates. Raises InputError for a rank or bottleneck that is too large or a block that is not there,
    UnsupportedError for models whose queries and values, or attention and feed-forward, cannot be told apart."""
    from luthier.models import tuners

    inner = inner_of(model)
    attentions, forwards, width = _places(inner, config)
    loras = _ranges(inner, attentions)
    layers = linear_layers(inner)
    check_rank({name: (layers[name][0], last - first) for name in loras for first, last in loras[name]}, config.rank)
    queries, outputs = [part.first for part in attentions], [part.output for part in forwards]
    settings = tuners.tuner("unipelt").CONFIG(
        target_modules=sorted({*loras, *queries, *outputs}),
        task_type=task_type(model),
        loras=loras,
        queries=queries,
        forwards=outputs,
        each_token=model.architecture == "decoder",
        rank=config.rank,
        scale=config.alpha / config.rank,
        prefix_length=config.prefix_length,
        size=_bottleneck.size_of(width, config),
        activation=config.activation,
    )
    return wrap(model, settings, method="unipelt")


def _places(module: Any, config: Config) -> tuple[list[Sublayer], list[Sublayer], int]:
    """Attentions, feed-forwards, and the width."""
    kinds = [_bottleneck.ATTENTION, _bottleneck.FEED_FORWARD]
    found = _bottleneck.parts(module, kinds, config.blocks, method="unipelt")
    forwards = [part for part in found if part.kind == _bottleneck.FEED_FORWARD]
    layers = linear_layers(module)
    width = _bottleneck.one_width([layers[part.output][1] for part in forwards], method="unipelt")
    return [part for part in found if part.kind == _bottleneck.ATTENTION], forwards, width


def _ranges(module: Any, attentions: list[Sublayer]) -> dict[str, list[list[int]]]:
    """Layer -> the ranges of its outputs that are queries or values. Raises UnsupportedError."""
    layers = linear_layers(module)
    found: dict[str, list[list[int]]] = {}
    for part in attentions:
        parent, _, own = part.first.rpartition(".")
        inputs, outputs = layers[part.first]
        value = next((name for each in _VALUES if (name := f"{parent}.{each}") in layers), None)
        if own == "c_attn" and outputs == 3 * inputs:  # GPT-2: queries, keys and values from one product
            found[part.first] = [[0, inputs], [2 * inputs, outputs]]
        elif own in _QUERIES and value is not None:
            found[part.first], found[value] = [[0, outputs]], [[0, layers[value][1]]]
        else:
            raise UnsupportedError(
                f"method unipelt finds no queries and values of their own in {parent}: its layers begin with {own}",
                hint="a method that does not need to tell them apart: method=mam or method=lora",
            )
    return found


def trained_parameters(module: Any, config: Config) -> int:
    """Of each attention r (inputs + outputs) of queries and of values and 2 l k (k the width of its keys), of each feed-forward 2 d b + d + b
    (d the width, b the units); and one gate, its inputs + 1, for each of these."""
    attentions, forwards, width = _places(module, config)
    layers = linear_layers(module)
    total = _bottleneck.prefix_parameters(module, attentions, config.prefix_length)
    for name, ranges in _ranges(module, attentions).items():
        inputs = layers[name][0]
        total += sum(config.rank * (inputs + last - first) + inputs + 1 for first, last in ranges)
    total += sum(layers[part.first][0] + 1 for part in attentions)
    size = _bottleneck.size_of(width, config)
    return total + len(forwards) * (_bottleneck.plain_parameters(width, size, norm="none") + width + 1)
