"""PEFT: any other method of that library, by its name there and with its own options.

PEFT (Mangrulkar et al. 2022) keeps adding methods: HRA, FOURIERFT, RANDLORA, LN_TUNING, MISS, C3A, WAVEFT and more. What sits in a
model's layers works here; each method's paper and options are in PEFT's documentation. LILY cannot be folded into the weights, and BEFT only
where layers have biases: those two are served where they are swapped in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from luthier.core.catalog import EntryConfig
from luthier.core.errors import UnsupportedError, did_you_mean
from luthier.methods._peft import target_names, task_type, wrap
from luthier.methods._targets import choose
from luthier.models.adapters import inner_of, quiet_peft
from luthier.models.load import LoadedModel

PAPER = "Mangrulkar et al. 2022, PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods, https://github.com/huggingface/peft"
FAMILY = "other"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-3},
    "encoder": {"learning_rate": 1e-3},
    "encoder-decoder": {"learning_rate": 1e-3},
}
_SOFT = "it puts something before the model that is no plain soft prompt; methods prompt, p_tuning, prefix and p_tuning_v2 are"
_OWN = "its ranks change from step to step; method adalora has that"
REFUSED: Mapping[str, str] = {
    "PROMPT_TUNING": "method prompt has that",
    "P_TUNING": "method p_tuning has that",
    "PREFIX_TUNING": "methods prefix and p_tuning_v2 have that",
    **dict.fromkeys(("MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE"), _SOFT),
    "ADAPTION_PROMPT": _SOFT,
    "BOFT": "PEFT compiles a CUDA extension for it when it is first used; method oft is its relative without",
    "ADALORA": _OWN,
    "XLORA": "it mixes adapters that were trained before",
    "POLY": "it needs to be told the task of each row",
    "SHADOW": "it puts a second model beside the layers",
    "FROD": "PEFT cannot put two of its adapters on one base",
    "TRAINABLE_TOKENS": "it goes into embeddings; lora_and_embeddings trains those",
}
"""Types that PEFT knows and this method does not take, with the reason."""
_SET_HERE = {"target_modules", "task_type", "peft_type", "inference_mode", "base_model_name_or_path", "auto_mapping"}
_NORMS = {"LN_TUNING"}


class Config(EntryConfig):
    """``type``: PEFT's name of the method, such as HRA. ``options``: that method's own, such as ``{r: 4}``.

    ``targets``: all_linear, or names (or ends of names) of layers; LN_TUNING goes into the norms.
    """

    type: str
    options: dict[str, Any] = Field(default_factory=dict)
    targets: Literal["all_linear"] | list[str] = "all_linear"

    @model_validator(mode="after")
    def _known(self) -> Config:
        """Refuse what PEFT does not know before any work."""
        known = _types()
        if self.type not in known and self.type.upper() in known:
            raise ValueError(f"type must be written {self.type.upper()}; got {self.type!r}")
        if self.type in REFUSED:
            raise ValueError(f"type {self.type} is not possible here: {REFUSED[self.type]}")
        if self.type not in known:
            raise ValueError(f"type must be one of PEFT's methods; got {self.type!r}. {did_you_mean(self.type, known)}")
        fields = {field.name for field in dataclasses.fields(known[self.type])} - _SET_HERE
        for key in self.options:
            if key not in fields:
                raise ValueError(f"options of {self.type}: unknown key {key!r}. {did_you_mean(key, fields)}")
        if str(self.options.get("bias", "none")) != "none":  # PEFT would put them over the base's, for whoever answers
            raise ValueError(f"options.bias must be none; got {self.options['bias']!r}. Method bitfit trains biases")
        return self


def _types() -> dict[str, Any]:
    """PEFT's name of each method that can be chosen -> its config class."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    found = {str(getattr(key, "value", key)): value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return {name: value for name, value in sorted(found.items()) if name not in REFUSED}


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the method into the targets. Raises InputError for targets that match nothing, UnsupportedError for what PEFT refuses."""
    kind = _types()[config.type]
    inner = inner_of(model)
    fields = {field.name for field in dataclasses.fields(kind)}
    own = {"save_projection": False} if "save_projection" in fields else {}
    if config.type in _NORMS:
        names = _norms(inner, config)
    else:
        names = target_names(config.targets, choose(inner, config.targets, where="method.targets"))
    try:
        with quiet_peft():
            settings = kind(**{**own, **config.options}, target_modules=names, task_type=task_type(model))
    except (TypeError, ValueError) as error:
        raise UnsupportedError(
            f"method peft, type {config.type}: {error}", hint=f"its options: {', '.join(sorted(fields - _SET_HERE))}"
        ) from error
    return wrap(model, settings, method=f"peft, type {config.type},")


def _norms(inner: Any, config: Config) -> list[str]:
    """Full names of the layers that normalise, or those of them that the targets name."""
    known = [name for name, layer in inner.named_modules() if type(layer).__name__.endswith("Norm") and name]
    if config.targets == "all_linear":
        return known
    chosen = [name for name in known if any(name == t or name.endswith(f".{t}") for t in config.targets)]
    if not chosen:
        near = did_you_mean(config.targets[0], {name.rsplit(".", 1)[-1] for name in known})
        raise UnsupportedError(f"method.targets must name norms for {config.type}; got {config.targets}. {near}")
    return chosen
