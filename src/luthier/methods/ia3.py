"""(IA)3: learned vectors rescale keys, values and the inner activation of the feed-forward; nothing else changes.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", section 3.3: l_k * K, l_v * V and
(l_ff * f(W1 x)) W2, all vectors one at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.core.catalog import EntryConfig
from luthier.core.errors import UnsupportedError
from luthier.methods._peft import Chosen, task_type, wrap
from luthier.methods._targets import choose, linear_layers
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = "Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, https://arxiv.org/abs/2205.05638"
FAMILY = "additive"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-2},
    "encoder": {"learning_rate": 1e-2},
    "encoder-decoder": {"learning_rate": 1e-2},
}
_KEYS_AND_VALUES = {"k_proj", "v_proj", "key", "value", "k", "v", "k_lin", "v_lin"}
_FUSED = {"c_attn", "query_key_value", "qkv_proj", "Wqkv"}


class Config(EntryConfig):
    """``outputs``: layers whose outputs are rescaled; auto is keys and values (a layer that makes queries too is rescaled whole).

    ``inputs``: layers whose inputs are rescaled; auto is the feed-forward's second layer. Or names (or ends of names) of linear layers.
    """

    outputs: Literal["auto"] | list[str] = "auto"
    inputs: Literal["auto"] | list[str] = "auto"


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the vectors in. Raises InputError for names that match nothing, UnsupportedError when auto finds no such layers."""
    from peft import IA3Config

    outputs, inputs = chosen_layers(inner_of(model), config)
    settings = IA3Config(
        target_modules=sorted({**outputs, **inputs}),
        feedforward_modules=sorted(inputs),
        task_type=task_type(model),
    )
    return wrap(model, settings, method="ia3")


def chosen_layers(module: Any, config: Config) -> tuple[Chosen, Chosen]:
    """The layers whose outputs, and the layers whose inputs are rescaled. A layer named for both is an input's."""
    layers = linear_layers(module)
    if config.outputs == "auto":
        named = {n: n.rsplit(".", 1)[-1] for n in layers}
        outputs: Chosen = {n: layers[n] for n, last in named.items() if last in _KEYS_AND_VALUES | _FUSED}
    else:
        outputs = choose(module, config.outputs, where="method.outputs")
    if config.inputs == "auto":
        width = int(module.config.get_text_config().hidden_size)
        inputs: Chosen = {n: (i, o) for n, (i, o) in layers.items() if i > o == width and "att" not in n}
    else:
        inputs = choose(module, config.inputs, where="method.inputs")
    for found, key, what in (
        (outputs, "outputs", "keys and values"),
        (inputs, "inputs", "the feed-forward's second layer"),
    ):
        if not found:
            known = sorted({name.rsplit(".", 1)[-1] for name in layers})
            raise UnsupportedError(
                f"method ia3 finds no layer for {what} in this model",
                hint=f"name them with method.{key}; its linear layers are called {', '.join(known)}",
            )
    return {n: shape for n, shape in outputs.items() if n not in inputs}, inputs


def trained_parameters(module: Any, config: Config) -> int:
    """Outputs of the layers for keys and values + inputs of the feed-forward's second layers."""
    outputs, inputs = chosen_layers(module, config)
    return sum(o for _, o in outputs.values()) + sum(i for i, _ in inputs.values())
