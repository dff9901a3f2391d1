"""LoKr: the correction of each weight matrix is a Kronecker product of a small matrix and a low-rank one.

Yeh et al. 2024, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation": W' = W + (alpha / r) C x
(B A), where C has about the root of W's sides (or ``factor``) and is zero at the start.
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

PAPER = "Yeh et al. 2024, Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation, https://arxiv.org/abs/2309.14859"
FAMILY = "reparametrised"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "merge"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 2e-3},
    "encoder": {"learning_rate": 6e-3},
    "encoder-decoder": {"learning_rate": 2e-3},
}


class Config(EntryConfig):
    """``rank`` r of the second factor, which stays whole where it is too small for that rank; ``alpha`` the scale (left out: 2 r).

    ``factor`` is how many parts each side is cut into (left out: as near the root of the side as it divides). ``decompose_both`` makes
    the first factor low-rank too. ``rank_dropout`` leaves out rows of the correction while training, ``module_dropout`` whole layers of it.
    ``targets``: all_linear, or names (or ends of names) of linear layers.
    """

    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    factor: int | None = Field(None, ge=2)
    decompose_both: bool = False
    rank_dropout: float = Field(0.0, ge=0, lt=1)
    module_dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all_linear"] | list[str] = "all_linear"


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put both factors into the targets. Raises InputError for targets that match nothing or too high a rank."""
    from peft import LoKrConfig

    chosen = choose(inner_of(model), config.targets, where="method.targets")
    check_rank(chosen, config.rank)
    settings = LoKrConfig(
        r=config.rank,
        alpha=config.alpha or 2.0 * config.rank,
        rank_dropout=config.rank_dropout,
        module_dropout=config.module_dropout,
        decompose_both=config.decompose_both,
        decompose_factor=config.factor or -1,
        target_modules=target_names(config.targets, chosen),
        task_type=task_type(model),
    )
    return wrap(model, settings, method="lokr")


def trained_parameters(module: Any, config: Config) -> int:
    """Of a target with outputs = a b and inputs = c d: a c + r (b + d), and b d or r (a + c) where a factor is whole or low-rank."""
    chosen = choose(module, config.targets, where="method.targets").values()
    return sum(_of_layer(inputs, outputs, config) for inputs, outputs in chosen)


def _of_layer(inputs: int, outputs: int, config: Config) -> int:
    (c, d), (a, b) = split_side(inputs, config.factor), split_side(outputs, config.factor)
    first_is_low = config.decompose_both and config.rank < max(a, c) / 2
    first = config.rank * (a + c) if first_is_low else a * c
    second = config.rank * (b + d) if config.rank < max(b, d) / 2 else b * d
    return first + second


def split_side(side: int, factor: int | None) -> tuple[int, int]:
    """(small, large) with small x large = side: ``factor`` itself where it divides, else the largest divisor up to it and to the root."""
    if factor is not None and side % factor == 0:
        return factor, side // factor
    most = min(factor or side, int(side**0.5))
    small = max(n for n in range(1, most + 1) if side % n == 0)
    return small, side // small
