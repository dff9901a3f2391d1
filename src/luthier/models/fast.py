"""Cheaper forwards with the same meaning, for modules that are worth it.

Measured on two Zen 5 cores with SmolLM2-135M in bf16 (8 x 128 tokens, LoRA r=8 on all linear layers): PEFT's LoRA layer adds three passes
over the layer's output (cast, scale, add); one product that accumulates into it takes 8% off a forward and 6% off a training step.
RMSNorm, rotary embedding and SiLU-times-gate were measured too: 2.7%, 2.4% and 3.4% of a forward, and PyTorch has nothing fused for
them on a CPU, so they stay as they are.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn


def speed_up(module: nn.Module) -> int:
    """Give every plain LoRA linear layer inside ``module`` the cheap forward; returns how many have it.

    The layer decides at each call: several active adapters, DoRA and other variants, merged weights, a bias in B, mixed dtypes or
    dropout while training go PEFT's own way. Calling it again does no harm.
    """
    from peft.tuners.lora.layer import Linear

    count = 0
    for layer in module.modules():
        if type(layer) is Linear and type(layer.base_layer) is nn.Linear:
            layer.forward = MethodType(_lora_forward, layer)
            count += 1
    return count


def _lora_forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """W x + (alpha / r) B A x, the second term accumulated into the first (Hu et al. 2022, equation 3)."""
    active = layer.active_adapters
    if (
        args
        or kwargs
        or layer.merged
        or layer.disable_adapters
        or len(active) != 1
        or not _is_plain(layer, active[0], x)
    ):
        out: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return out
    (name,) = active
    whole: torch.Tensor = layer.base_layer(x)
    low = nn.functional.linear(x, layer.lora_A[name].weight)
    flat = whole.view(-1, whole.shape[-1])
    flat = flat.addmm_(low.view(-1, low.shape[-1]), layer.lora_B[name].weight.t(), alpha=layer.scaling[name])
    return flat.view(whole.shape)


def _is_plain(layer: Any, name: str, x: torch.Tensor) -> bool:
    if name not in layer.lora_A or name in layer.lora_variant:
        return False
    a, b = layer.lora_A[name], layer.lora_B[name]
    if b.bias is not None or not x.dtype == a.weight.dtype == b.weight.dtype == layer.base_layer.weight.dtype:
        return False
    return not (layer.training and isinstance(layer.lora_dropout[name], nn.Dropout))
