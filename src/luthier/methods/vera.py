"""VeRA: all layers share two frozen random matrices; only two scaling vectors a layer are trained.

Kopiczko, Blankevoort and Asano 2024, "VeRA: Vector-based Random Matrix Adaptation", equation 2: h = W x + b * (B (d * (A x))), with d at
``d_initial`` and b zero at the start. The random matrices are drawn again from ``seed`` when a model is loaded, so the file holds the
vectors alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.methods._peft import target_names, task_type, wrap
from luthier.methods._targets import choose
from luthier.models.adapters import inner_of, quiet_peft
from luthier.models.load import LoadedModel

PAPER = "Kopiczko, Blankevoort and Asano 2024, VeRA: Vector-based Random Matrix Adaptation, https://arxiv.org/abs/2310.11454"
FAMILY = "reparametrised"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-2},
    "encoder": {"learning_rate": 1e-2},
    "encoder-decoder": {"learning_rate": 1e-2},
}


class Config(EntryConfig):
    """``rank`` r of the shared random matrices, which costs one parameter a layer each and may pass the layers' own sides.

    ``d_initial`` is the start of d. ``dropout`` on the input. ``seed`` draws the random matrices. ``targets``: all_linear, or names (or ends of
    names) of linear layers.
    """

    rank: int = Field(256, ge=1)
    d_initial: float = Field(0.1, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    targets: Literal["all_linear"] | list[str] = "all_linear"


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the vectors into the targets. Raises InputError for targets that match nothing."""
    from peft import VeraConfig

    chosen = choose(inner_of(model), config.targets, where="method.targets")
    with quiet_peft():
        settings = VeraConfig(
            r=config.rank,
            d_initial=config.d_initial,
            vera_dropout=config.dropout,
            projection_prng_key=config.seed,
            save_projection=False,
            target_modules=target_names(config.targets, chosen),
            task_type=task_type(model),
        )
    return wrap(model, settings, method="vera")


def trained_parameters(module: Any, config: Config) -> int:
    """r + outputs of every target."""
    chosen = choose(module, config.targets, where="method.targets").values()
    return sum(config.rank + outputs for _, outputs in chosen)
