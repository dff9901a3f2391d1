"""LoHa: the correction of each weight matrix is the entry-wise product of two low-rank ones, so its rank reaches r squared.

Hyeon-Woo, Ye-Bin and Oh 2022, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning", proposition 1, as an
adapter: W' = W + (alpha / r) (B1 A1) * (B2 A2); one of the four matrices is zero at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.methods._peft import check_rank, target_names, task_type, wrap
from luthier.methods._targets import choose
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = "Hyeon-Woo, Ye-Bin and Oh 2022, FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning, https://arxiv.org/abs/2108.06098"
FAMILY = "reparametrised"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-3},
    "encoder": {"learning_rate": 3e-3},
    "encoder-decoder": {"learning_rate": 1e-3},
}


class Config(EntryConfig):
    """``rank`` r of each of the two factors; ``alpha`` their scale (left out: 2 r).

    ``rank_dropout`` leaves out rows of the correction while training, ``module_dropout`` whole layers of it. ``targets``: all_linear, or
    names (or ends of names) of linear layers.
    """

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    rank_dropout: float = Field(0.0, ge=0, lt=1)
    module_dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all_linear"] | list[str] = "all_linear"


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the four matrices into the targets. Raises InputError for targets that match nothing or too high a rank."""
    from peft import LoHaConfig

    chosen = choose(inner_of(model), config.targets, where="method.targets")
    check_rank(chosen, config.rank)
    settings = LoHaConfig(
        r=config.rank,
        alpha=config.alpha or 2.0 * config.rank,
        rank_dropout=config.rank_dropout,
        module_dropout=config.module_dropout,
        target_modules=target_names(config.targets, chosen),
        task_type=task_type(model),
    )
    return wrap(model, settings, method="loha")


def trained_parameters(module: Any, config: Config) -> int:
    """2 r (inputs + outputs) of every target."""
    chosen = choose(module, config.targets, where="method.targets").values()
    return sum(2 * config.rank * (inputs + outputs) for inputs, outputs in chosen)
