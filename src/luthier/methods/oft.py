"""OFT: the inputs of each weight matrix are rotated in blocks; angles between neurons stay as they were.

Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning": y = W R x with R = (I + Q)(I - Q)^-1 by
Cayley's transform of a skew-symmetric Q, block-diagonal and the identity at the start. ``neumann`` sums the inverse's first terms
instead of solving for it (Qiu et al. 2025, "Orthogonal Finetuning Made Scalable"): cheaper on a GPU, orthogonal only while Q is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import InputError
from luthier.methods._peft import target_names, task_type, wrap
from luthier.methods._targets import choose
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = (
    "Qiu et al. 2023, Controlling Text-to-Image Diffusion by Orthogonal Finetuning, https://arxiv.org/abs/2306.07280"
)
FAMILY = "reparametrised"
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


class Config(EntryConfig):
    """``block_size`` b: how many inputs turn together; it must divide the inputs of every target.

    ``share``: one rotation for all blocks of a layer. ``constraint``: how far Q may go from zero (left out: anywhere). ``dropout``: the share
    of blocks that stand still while training. ``neumann``: a series instead of the exact transform. ``targets``: all_linear, or names (or
    ends of names) of linear layers.
    """

    block_size: int = Field(32, ge=2)
    share: bool = False
    constraint: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    neumann: bool = False
    targets: Literal["all_linear"] | list[str] = "all_linear"


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the rotations before the targets. Raises InputError for targets that match nothing, or that the block size does not divide."""
    from peft import OFTConfig

    chosen = choose(inner_of(model), config.targets, where="method.targets")
    for name, (inputs, _) in chosen.items():
        if inputs % config.block_size:
            fits = [n for n in range(2, inputs + 1) if all(i % n == 0 for i, _ in chosen.values())]
            near = sorted(fits, key=lambda n: abs(n - config.block_size))[:3]
            raise InputError(
                f"method.block_size must divide the inputs of every target; got {config.block_size}, and {name} has {inputs}. "
                f"Near sizes that do: {', '.join(map(str, near)) or 'none'}"
            )
    settings = OFTConfig(
        r=0,
        oft_block_size=config.block_size,
        block_share=config.share,
        coft=config.constraint is not None,
        eps=config.constraint or 6e-5,
        module_dropout=config.dropout,
        use_cayley_neumann=config.neumann,
        target_modules=target_names(config.targets, chosen),
        task_type=task_type(model),
    )
    return wrap(model, settings, method="oft")


def trained_parameters(module: Any, config: Config) -> int:
    """b (b - 1) / 2 of every block: inputs / b blocks a target, or one when they share."""
    size = config.block_size
    chosen = choose(module, config.targets, where="method.targets").values()
    return sum((1 if config.share else inputs // size) * size * (size - 1) // 2 for inputs, _ in chosen)
