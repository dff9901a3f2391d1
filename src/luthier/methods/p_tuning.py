"""P-tuning: virtual tokens before every text, whose embeddings a small network makes while they are trained.

Liu et al. 2021, "GPT Understands, Too", section 3.2: embeddings that are trained one by one learn slowly, so that a prompt encoder makes
them of what is trained: h = MLP(LSTM(p)), or an MLP alone. Afterwards only its output is kept: what is stored and served is a soft prompt
like that of method prompt. In an encoder the virtual tokens are attended to and not pooled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.methods import _soft
from luthier.models.load import LoadedModel

PAPER = "Liu et al. 2021, GPT Understands, Too, https://arxiv.org/abs/2103.10385"
FAMILY = "soft_prompt"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "no"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 5e-3, "weight_decay": 0.0},
    "encoder": {"learning_rate": 1.5e-2, "weight_decay": 0.0},
    "encoder-decoder": {"learning_rate": 5e-3, "weight_decay": 0.0},
}


class Config(EntryConfig):
    """``tokens``: how many virtual tokens. ``encoder``: the network that makes them, an MLP of three layers, or a bidirectional LSTM
    with an MLP of two layers on it. ``hidden``: the width inside that network; left out, the model's.

    ``layers`` of the LSTM, and ``dropout`` between them.
    """

    tokens: int = Field(20, ge=1)
    encoder: Literal["mlp", "lstm"] = "mlp"
    hidden: int | None = Field(None, ge=1)
    layers: int = Field(2, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _together(self) -> Config:
        """Options of the LSTM are for it alone, and dropout needs layers to be between."""
        if self.encoder == "mlp" and self.model_fields_set & {"layers", "dropout"}:
            raise ValueError("layers and dropout are for encoder lstm; got encoder mlp")
        if self.dropout and self.layers == 1:
            raise ValueError("dropout is between the layers of the LSTM; got layers 1")
        return self


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the virtual tokens before the model. Raises InputError for too many of them."""
    from peft import PromptEncoderConfig

    settings = PromptEncoderConfig(
        num_virtual_tokens=config.tokens,
        num_transformer_submodules=1,
        encoder_reparameterization_type=config.encoder.upper(),
        encoder_hidden_size=config.hidden,
        encoder_num_layers=config.layers,
        encoder_dropout=config.dropout,
    )
    return _soft.put(model, settings, method="p_tuning")


def trained_parameters(module: Any, config: Config) -> int:
    """An embedding for each virtual token, and the matrices and biases of the network."""
    width = _soft.sizes(module)[1]
    h = config.hidden or width
    own = config.tokens * width
    if config.encoder == "mlp":
        return own + (width + 1) * h + (h + 1) * h + (h + 1) * width
    inputs = [width] + [2 * h] * (config.layers - 1)
    lstm = sum(2 * 4 * h * (i + h + 2) for i in inputs)  # two directions, four gates, two biases each
    return own + lstm + (2 * h + 1) * 2 * h + (2 * h + 1) * width
