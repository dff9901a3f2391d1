"""LoRA: a low-rank correction beside each chosen weight matrix; the base stays frozen.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models": h = W x + (alpha / r) B A x, with A random and B zero at the
start. Rank-stabilised scaling alpha / sqrt(r) is Kalajdzievski 2023. Encoders get LoRA in the body and a trained head.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import InputError
from luthier.methods._targets import choose
from luthier.models.load import LoadedModel

SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "swap"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-3},
    "encoder": {"learning_rate": 1e-3},
}


class Config(EntryConfig):
    """``rank`` r of the correction; ``alpha`` its scale (left out: 2 r, or 2 sqrt(r) with ``rslora``: factor 2 either way).

    ``dropout`` on the input of A. ``targets``: all_linear, or names (or ends of names) of linear layers such as [q_proj, v_proj].
    """

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all_linear"] | list[str] = "all_linear"
    rslora: bool = False

    @property
    def scale(self) -> float:
        """alpha, worked out."""
        if self.alpha is not None:
            return self.alpha
        return 2.0 * (self.rank**0.5 if self.rslora else self.rank)


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Wrap the decoder (or the encoder's body) in a PEFT model; only A, B and an encoder's head are trained.

    Raises InputError for targets that match nothing, or a rank above a target's smaller side (it could not add anything).
    """
    from peft import LoraConfig, get_peft_model

    decoder = model.architecture == "decoder"
    inner = model.module if decoder else model.module.body
    chosen = choose(inner, config.targets, where="method.targets")
    name, shape = min(chosen.items(), key=lambda item: min(item[1]))
    if config.rank > min(shape):
        raise InputError(
            f"method.rank must be at most {min(shape)}, the smaller side of {name} ({shape[0]} x {shape[1]}); got {config.rank}"
        )
    every = config.targets == "all_linear"
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.scale,
        lora_dropout=config.dropout,
        target_modules=sorted({name.rsplit(".", 1)[-1] for name in chosen}) if every else sorted(chosen),
        use_rslora=config.rslora,
        task_type="CAUSAL_LM" if decoder else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a property that transformers is renaming
        # autocast_adapter_dtype: A and B are in the model's dtype, their fp32 masters in the optimizer
        wrapped = get_peft_model(inner, settings, autocast_adapter_dtype=False)
    if decoder:
        return replace(model, module=wrapped)
    model.module.body = wrapped
    model.module.head.requires_grad_(True)
    return model
