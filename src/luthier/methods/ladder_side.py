"""Ladder side-tuning: a small network beside the frozen model reads its hidden states; backpropagation never enters the model itself.

Sung, Cho and Bansal 2022, "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning", section 3: side blocks of the
model's own kind with every width divided by r, gates between the side state and each block's output, an up-projection before the
frozen head. Training holds activations of the small network only. The output is the side network's, so an untrained one answers at
random; ``output: added`` starts as the base instead. Adapters and soft prompts train inside the model and cannot save that memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import InputError, UnsupportedError
from luthier.methods._peft import task_type, wrap
from luthier.models import tuners
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel

PAPER = (
    "Sung, Cho and Bansal 2022, LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning, "
    "https://arxiv.org/abs/2206.06522"
)
FAMILY = "additive"
SAVES = "adapter"
SERVING: Mapping[str, Mapping[str, str]] = {
    "decoder": {"torch": "swap", "llamacpp": "no"},
    "encoder": {"torch": "swap", "llamacpp": "no"},
    "encoder-decoder": {"torch": "swap", "llamacpp": "no"},
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "decoder": {"learning_rate": 1e-3},
    "encoder": {"learning_rate": 1e-3},
    "encoder-decoder": {"learning_rate": 1e-3},
}


class Config(EntryConfig):
    """``reduction`` r: every width of the model is divided by it; it must divide the width of an attention head.

    ``every``: a side block at every so many blocks, the last one always. ``output``: side is the paper's, the side network answers;
    added puts its up-projection, zero at the start, on top of the model's own output. ``temperature`` T of the gates sigmoid(alpha / T).
    """

    reduction: int = Field(8, ge=2)
    every: int = Field(1, ge=1)
    output: Literal["side", "added"] = "side"
    temperature: float = Field(0.1, gt=0)


def activation_share(config: Config) -> float:
    """What training keeps of a block's activations, beside training through the block itself: those of a side block, and the states that go
    along (counted from what autograd saves in SmolLM2-135M at r = 8: 0.26)."""
    return (1 / config.reduction + 0.135) / config.every


def build(model: LoadedModel, config: Config) -> LoadedModel:
    """Put the side network in. Raises InputError for a reduction that does not divide the widths, UnsupportedError without blocks."""
    tuner = tuners.tuner("ladder_side")
    _check(inner_of(model), config, tuner)
    settings = tuner.CONFIG(
        target_modules=tuner.targets(inner_of(model)),
        reduction=config.reduction,
        every=config.every,
        output=config.output,
        temperature=config.temperature,
        task_type=task_type(model),
    )
    return wrap(model, settings, method="ladder_side")


def _check(module: Any, config: Config, tuner: Any) -> None:
    from luthier.models.tuners._stacks import stacks

    whole = module.config.get_text_config()
    if not tuner.targets(module):
        raise UnsupportedError(f"method ladder_side finds no blocks with attention in {type(module).__name__}")
    if any(stack.feeds and stack.norm is None for stack in stacks(module)):
        raise UnsupportedError(
            f"method ladder_side needs a norm after an encoder-decoder's last block, as T5 has; {type(module).__name__} has none",
            hint="method=lora or method=pfeiffer_adapter takes this model",
        )
    try:
        tuner.side_config(whole, config.reduction)
    except ValueError as error:
        fitting = [str(r) for r in range(2, int(whole.hidden_size) + 1) if _fits(whole, r, tuner)]
        raise InputError(
            f"method.reduction must be one of {', '.join(fitting) or 'none'} for this model; got {config.reduction} ({error})"
        ) from error


def _fits(config: Any, reduction: int, tuner: Any) -> bool:
    try:
        tuner.side_config(config, reduction)
    except ValueError:
        return False
    return True


def trained_parameters(module: Any, config: Config) -> int:
    """With d the width and w = d / r: of each stack D_0 and U (an encoder that a decoder reads has no U) and the last norm's share; at
    each side block D_i, a gate, and the block with every side of its weights divided by r (relative positions are the model's own)."""
    from luthier.models.tuners import ladder_side as tuner
    from luthier.models.tuners._stacks import stacks

    d, r = int(module.config.get_text_config().hidden_size), config.reduction
    w, total = d // r, 0
    for stack in stacks(module):
        down, up = w * (d + 1), 0 if stack.feeds else d * (w + 1)
        norm = sum(p.numel() for p in module.get_submodule(stack.norm).parameters()) // r if stack.norm else 0
        total += down + up + norm
        for number in tuner.side_numbers(len(stack.blocks), config.every):
            weights = dict(module.get_submodule(stack.blocks[number]).named_parameters())
            sizes = [prod(n // r for n in p.shape) for k, p in weights.items() if "relative_attention_bias" not in k]
            total += down + 1 + sum(sizes)
    return total
