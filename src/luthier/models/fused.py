"""Training steps with fewer passes over memory: LoRA layers as one operation.

PEFT computes base(x) + B(A(x)) * s with a kernel, and a tensor of the output's size, for each sign. Here the correction is added in
place while the base product is still in cache, the backward pass computes no gradient of the frozen weight, and nothing of the
output's size is kept. Same equation (Hu et al. 2022, section 4.1), same parameters; ``benchmarks/train.py`` shows what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _LoraLinear(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T; shapes: x (tokens, in), W (out, in), b (out,) or None, A (rank, in), B (out, rank)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        low = x @ a.t()
        y = nn.functional.linear(x, weight, bias)
        y.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x, weight, a, b, low = ctx.saved_tensors
        through = (gradient @ b).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ weight
            of_x.addmm_(through, a)
        return of_x, None, None, through.t() @ x, (gradient.t() @ low).mul_(ctx.scale), None


@contextmanager
def fused(module: nn.Module) -> Iterator[int]:
    """Within the block, LoRA layers of ``module`` that are plain run fused; yields how many.

    Plain is: one active adapter, not merged, no dropout, no variant (DoRA and such), and a frozen floating-point base weight. The other
    layers run as PEFT runs them.
    """
    from peft.tuners.lora.layer import Linear

    patched: list[nn.Module] = []
    try:
        for layer in module.modules():
            # Exactly PEFT's own class: quantized layers inherit from others and keep their forward.
            if type(layer) is Linear and _is_plain(layer):
                layer.forward = _forward(layer)
                patched.append(layer)
        yield len(patched)
    finally:
        for layer in patched:
            del layer.forward  # the class's own shows again


def _is_plain(layer: Any) -> bool:
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or layer.merged or layer.disable_adapters or names[0] in layer.lora_variant:
        return False
    name, base = names[0], layer.base_layer
    return (
        type(base) is nn.Linear
        and base.weight.is_floating_point()
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_B[name].bias is None
        and layer.lora_A[name].weight.dtype == base.weight.dtype
    )


def _forward(layer: Any) -> Callable[..., Tensor]:
    name = next(name for name in layer.active_adapters if name in layer.lora_A)
    base, a, b, scale = layer.base_layer, layer.lora_A[name], layer.lora_B[name], float(layer.scaling[name])

    def forward(x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(base.weight.dtype)
        out = cast(
            Tensor,
            _LoraLinear.apply(flat, base.weight, base.bias, a.weight, b.weight, scale),  # type: ignore[no-untyped-call]
        )
        return out.view(*x.shape[:-1], -1)

    return forward
