"""Prompt tuning: a few virtual tokens are put before every text, and only their embeddings are trained.

Lester, Al-Rfou and Constant 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning": the model reads [P; X], where X are the
embeddings of the text and P those that are learned (section 2). The larger the model, the closer this comes to training all of it. In
an encoder the virtual tokens are attended to and not pooled: the vector of a text is that of its real tokens (as in the code of Liu
et al. 2022, P-Tuning v2; a classifier of PEFT pools the first virtual token).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.methods import _soft
from luthier.models.load import LoadedModel

PAPER = "Lester, Al-Rfou and Constant 2021, The Power of Scale for Parameter-Efficient Prompt Tuning, https://arxiv.org/abs/2104.08691"
FAMILY = "soft_prompt"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "no"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 3e-2, "weight_decay": 0.0},
    "encoder": {"learning_rate": 3e-2, "weight_decay": 0.0},
    "encoder-decoder": {"learning_rate": 3e-2, "weight_decay": 0.0},
}


class Config(EntryConfig):
    """``tokens``: how many virtual tokens; more than 20 gain little (section 3.2).

    ``init``: what their embeddings begin as. vocabulary: common words, drawn by chance. labels: the labels' own words, and words
    of the vocabulary for the tokens that are left. text: the tokens of ``text``, again and again until there are enough. random:
    noise with the spread of the model's embeddings.
    """

    tokens: int = Field(20, ge=1)
    init: Literal["vocabulary", "labels", "text", "random"] = "vocabulary"
    text: str | None = None

    @model_validator(mode="after")
    def _together(self) -> Config:
        """A text belongs to init text, and that to a text."""
        _soft.check_text(self.init, self.text)
        return self


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the virtual tokens before the model. Raises InputError for too many of them, and for init labels without labels."""
    from peft import PromptTuningConfig

    values = None
    if model.device.type != "meta":
        if config.init == "labels":
            values = _soft.label_embeddings(model, config.tokens)
        elif config.init == "random":
            values = _soft.random_embeddings(model, config.tokens)
        else:
            values = _soft.embeddings(model, _soft.start_ids(model, config.init, config.text, config.tokens))
    settings = PromptTuningConfig(num_virtual_tokens=config.tokens, num_transformer_submodules=1)
    built = _soft.put(model, settings, method="prompt")
    if values is not None:
        _soft.set_tokens(built, values)
    return built


def trained_parameters(module: Any, config: Config) -> int:
    """An embedding for each virtual token."""
    return config.tokens * _soft.sizes(module)[1]
