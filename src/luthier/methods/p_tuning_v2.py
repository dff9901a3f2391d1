"""P-tuning v2: deep prompts, learned keys and values in every layer of an encoder, with a classification head.

Liu et al. 2022, "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks", section 3: what prefix tuning
does to generation, for understanding: prompts in every layer instead of the first one only, no reparametrisation, and a head that is
trained too. For decoders, whose labels are scored as texts, this is method prefix with mlp: false.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.methods import _soft
from luthier.models.load import LoadedModel

PAPER = "Liu et al. 2022, P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks, https://arxiv.org/abs/2110.07602"
FAMILY = "soft_prompt"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {"encoder": {"torch": "swap", "llamacpp": "no"}}
FOLDS = False
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"encoder": {"learning_rate": 2e-2, "weight_decay": 0.0}}


class Config(EntryConfig):
    """``tokens``: how many virtual tokens; simple classification does best with fewer than 20 (section 3.3).

    ``init``: what their keys and values begin as. random: noise. vocabulary: those of common words, drawn by chance. text: those of
    ``text``, again and again until there are enough.
    """

    tokens: int = Field(20, ge=1)
    init: Literal["random", "vocabulary", "text"] = "random"
    text: str | None = None

    @model_validator(mode="after")
    def _together(self) -> Config:
        """A text belongs to init text, and that to a text."""
        _soft.check_text(self.init, self.text)
        return self


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put keys and values before the body's own. Raises InputError for too many tokens, UnsupportedError for encoders that take none."""
    return _soft.put_prefix(
        model, method="p_tuning_v2", tokens=config.tokens, hidden=None, init=config.init, text=config.text
    )


def trained_parameters(module: Any, config: Config) -> int:
    """A key and a value in each layer for each virtual token."""
    layers, _, kv = _soft.sizes(module)
    return config.tokens * 2 * layers * kv
