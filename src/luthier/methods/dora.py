"""DoRA: LoRA on the direction of each weight matrix, with its magnitude trained apart.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5: W' = m (W + s B A) / ||W + s B A||, with one trained m for
each output, at the start the norm of W's row; the norm takes part in no gradient (section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.methods._peft import check_rank, lora_alpha, target_names, task_type, wrap
from luthier.methods._targets import choose
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = "Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation, https://arxiv.org/abs/2402.09353"
FAMILY = "reparametrised"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-3},
    "encoder": {"learning_rate": 2e-3},
    "encoder-decoder": {"learning_rate": 1e-3},
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


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put A, B and the magnitudes into the targets. Raises InputError for targets that match nothing or too high a rank."""
    from peft import LoraConfig

    chosen = choose(inner_of(model), config.targets, where="method.targets")
    check_rank(chosen, config.rank)
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=lora_alpha(config.alpha, config.rank, rslora=config.rslora),
        lora_dropout=config.dropout,
        target_modules=target_names(config.targets, chosen),
        use_rslora=config.rslora,
        use_dora=True,
        task_type=task_type(model),
    )
    return wrap(model, settings, method="dora")


def trained_parameters(module: Any, config: Config) -> int:
    """r (inputs + outputs) + outputs of every target."""
    chosen = choose(module, config.targets, where="method.targets").values()
    return sum(config.rank * (inputs + outputs) + outputs for inputs, outputs in chosen)
