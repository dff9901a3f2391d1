"""Attention only: the query, key, value and output projections of every block are trained, the feed-forward layers are not.

Touvron et al. 2022, "Three Things Everyone Should Know About Vision Transformers", section 4, on transformers of any kind of input:
fine-tuning the attention layers alone does as well as fine-tuning everything, with a third of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.catalog import EntryConfig
from luthier.core.errors import UnsupportedError
from luthier.methods._parts import attention_projections, narrow, of_modules, train_only
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = (
    "Touvron et al. 2022, Three Things Everyone Should Know About Vision Transformers, https://arxiv.org/abs/2203.09795"
)
FAMILY = "selective"
SAVES = "delta"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-4, "weight_decay": 0.01},
    "encoder": {"learning_rate": 6e-4, "weight_decay": 0.01},
    "encoder-decoder": {"learning_rate": 1e-4, "weight_decay": 0.01},
}


class Config(EntryConfig):
    """``projections``: names (or ends of names) of the projections to train, such as [q_proj, v_proj]; left out, all of them."""

    projections: list[str] | None = None


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Let the attention's linear layers require a gradient. Raises InputError for a name that matches none of them."""
    module = inner_of(model)
    found = attention_projections(module)
    if not found:
        raise UnsupportedError(
            f"method attention_only trains attention layers; {model.record.name} has none that it knows",
            hint="name them: method=freeze method.parts=[...]",
        )
    chosen = narrow(found, config.projections, where="method.projections", what="projection of the attention")
    return train_only(model, of_modules(module, chosen))
