"""BitFit: only the bias terms are trained.

Ben Zaken et al. 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models", section 3: of
each block the biases of query, key, value, of the dense layers and of the norms. The paper's smaller variant (section 4) trains two
of them: ``biases: [query, intermediate.dense]``. Models without biases (Llama) have nothing that it could train.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.catalog import EntryConfig
from luthier.core.errors import UnsupportedError
from luthier.methods._parts import narrow, train_only
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = "Ben Zaken et al. 2022, BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models, https://arxiv.org/abs/2106.10199"
FAMILY = "selective"
SAVES = "delta"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-3},
    "encoder": {"learning_rate": 3e-3},
    "encoder-decoder": {"learning_rate": 1e-3},
}


class Config(EntryConfig):
    """``biases``: names (or ends of names) of the layers whose bias is trained, such as [query, intermediate.dense]; left out, all."""

    biases: list[str] | None = None


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Let the bias terms require a gradient.

    Raises UnsupportedError for a model without any, InputError for a name that matches no layer with a bias.
    """
    module = inner_of(model)
    found = {
        name.removesuffix(".bias"): parameter
        for name, parameter in module.named_parameters()
        if name.endswith(".bias") and parameter.ndim == 1
    }
    if not found:
        raise UnsupportedError(
            f"method bitfit trains bias terms; {model.record.name} ({type(module).__name__}) has none",
            hint="for this model: method=layer_norm | method=lora",
        )
    chosen = narrow(found, config.biases, where="method.biases", what="layer with a bias")
    return train_only(model, {name: found[name] for name in chosen})
