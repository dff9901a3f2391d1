"""Layer norm: only the gains (and biases) of the normalisation layers are trained.

Qi et al. 2022, "Parameter-Efficient Tuning on Layer Normalization for Pre-trained Language Models", equation 2: y = (x - mean) / std *
gain + bias, with gain and bias trained; of RMSNorm, which Llama has, there is a gain only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.catalog import EntryConfig
from luthier.core.errors import UnsupportedError
from luthier.methods._parts import narrow, norms, of_modules, train_only
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = "Qi et al. 2022, Parameter-Efficient Tuning on Layer Normalization for Pre-trained Language Models, https://arxiv.org/abs/2211.08682"
FAMILY = "selective"
SAVES = "delta"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 5e-3},
    "encoder": {"learning_rate": 5e-3},
    "encoder-decoder": {"learning_rate": 5e-3},
}


class Config(EntryConfig):
    """``norms``: names (or ends of names) of the norms to train, such as [post_attention_layernorm]; left out, all of them.

    ``bias``: train their biases too, where they have any.
    """

    norms: list[str] | None = None
    bias: bool = True


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Let the norms' gains and biases require a gradient. Raises InputError for a name that matches no norm."""
    module = inner_of(model)
    found = norms(module)
    if not found:
        raise UnsupportedError(
            f"method layer_norm trains normalisation layers; {model.record.name} has none", hint="use method=lora"
        )
    chosen = of_modules(module, narrow(found, config.norms, where="method.norms", what="normalisation layer"))
    if not config.bias:
        chosen = {name: p for name, p in chosen.items() if not name.endswith(".bias")}
    return train_only(model, chosen)
