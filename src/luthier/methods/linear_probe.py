"""Linear probe: a trained linear head on a frozen encoder.

Alain and Bengio 2017, "Understanding intermediate layers using linear classifier probes", on the pooled output. The features of
the training texts never change, so they are computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.catalog import EntryConfig
from luthier.core.errors import UnsupportedError
from luthier.models.load import LoadedModel

PAPER = "Alain and Bengio 2017, Understanding Intermediate Layers Using Linear Classifier Probes, https://arxiv.org/abs/1610.01644"
FAMILY = "selective"
SAVES = "head"
ARCHITECTURES = ("encoder",)
SERVING: Mapping[str, Mapping[str, str]] = {"encoder": {"torch": "swap", "llamacpp": "no"}}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"encoder": {"learning_rate": 1e-2, "epochs": 30, "batch_size": 32}}


class Config(EntryConfig):
    """Nothing to choose: the body is frozen, the head is linear."""


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Freeze the body, train the head. Raises UnsupportedError for a decoder, or an encoder without a head."""
    if model.architecture != "encoder":
        raise UnsupportedError(
            f"method linear_probe needs an encoder; {model.record.name} is a decoder",
            hint="use model.base=minilm-l6 with linear_probe, or method: lora with this model",
        )
    if model.module.head is None:
        raise UnsupportedError(
            "method linear_probe trains a head alone, and this objective tunes an encoder without one",
            hint="choose a method that changes the encoder: method: lora",
        )
    model.module.body.requires_grad_(False)
    model.module.head.requires_grad_(True)
    return model
