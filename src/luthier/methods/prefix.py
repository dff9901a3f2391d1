"""Prefix tuning: in every layer, learned keys and values stand before those of the text.

Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", section 4.2: attention reads [P_k; K] and [P_v; V]. Trained
directly they are unstable, so that an MLP makes them of smaller vectors while they are trained (section 4.3); afterwards only its
output is kept. In an encoder without the MLP this is P-tuning v2 (method p_tuning_v2). Encoder-decoders are not taken: PEFT, whose files
these are, gives their layers the keys and values of other layers, so that half of what was trained would never be read (method mam has prefixes
for them).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.methods import _soft
from luthier.models.load import LoadedModel

PAPER = (
    "Li and Liang 2021, Prefix-Tuning: Optimizing Continuous Prompts for Generation, https://arxiv.org/abs/2101.00190"
)
FAMILY = "soft_prompt"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "no"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-3, "weight_decay": 0.0},
    "encoder": {"learning_rate": 2e-3, "weight_decay": 0.0},
}


class Config(EntryConfig):
    """``tokens``: how many virtual tokens. ``mlp``: train them through an MLP of two layers; ``hidden``: its inner width.

    ``init``: what they begin as without the MLP. random: noise. vocabulary: the keys and values of common words, drawn by chance. text:
    those of ``text``, again and again until there are enough (the paper's section 7.4: better than noise where data is scarce).
    """

    tokens: int = Field(10, ge=1)
    mlp: bool = True
    hidden: int = Field(512, ge=1)
    init: Literal["random", "vocabulary", "text"] = "random"
    text: str | None = None

    @model_validator(mode="after")
    def _together(self) -> Config:
        """What is for one kind of training only."""
        _soft.check_text(self.init, self.text)
        if self.mlp and self.init != "random":
            raise ValueError(f"init {self.init} sets the keys and values themselves, which needs mlp: false")
        if not self.mlp and "hidden" in self.model_fields_set:
            raise ValueError("hidden is the width of the MLP; got mlp: false")
        return self


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put keys and values before the model's own. Raises InputError for too many tokens, UnsupportedError for models that take none."""
    return _soft.put_prefix(
        model,
        method="prefix",
        tokens=config.tokens,
        hidden=config.hidden if config.mlp else None,
        init=config.init,
        text=config.text,
    )


def trained_parameters(module: Any, config: Config) -> int:
    """A key and a value in each layer for each virtual token; with the MLP its input vectors, matrices and biases."""
    layers, _, kv = _soft.sizes(module)
    if not config.mlp:
        return config.tokens * 2 * layers * kv
    return config.tokens * kv + (kv + 1) * config.hidden + (config.hidden + 1) * 2 * layers * kv
