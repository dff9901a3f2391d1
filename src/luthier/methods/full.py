"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.catalog import EntryConfig
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = "Howard and Ruder 2018, Universal Language Model Fine-tuning for Text Classification, https://arxiv.org/abs/1801.06146"
FAMILY = "selective"
SAVES = "weights"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "merge", "llamacpp": "merge"},
    "encoder": {"torch": "merge", "llamacpp": "no"},
    "encoder-decoder": {"torch": "merge", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 5e-5, "weight_decay": 0.01},
    "encoder": {"learning_rate": 2e-4, "weight_decay": 0.01},
    "encoder-decoder": {"learning_rate": 5e-5, "weight_decay": 0.01},
}


class Config(EntryConfig):
    """``embeddings``: train the token embeddings too. Frozen, they keep words that the training data lacks where they were."""

    embeddings: bool = True


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Let every parameter require a gradient."""
    model.module.requires_grad_(True)
    if not config.embeddings:
        inner = inner_of(model)
        inner.get_input_embeddings().requires_grad_(False)
    return model
