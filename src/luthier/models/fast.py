"""Cheaper forwards with the same meaning, for modules that are worth it.

LoRA and DoRA are here, PEFT's other tuner layers in ``models.fast_tuners``. PEFT's LoRA layer adds three passes over the layer's output
(cast, scale, add). Here one product accumulates into it, and while training the backward pass computes nothing for the frozen weight and
keeps nothing of the output's size. Measured on two Zen 5 cores with
SmolLM2-135M in bf16 (8 x 128 tokens, LoRA r=8 on all linear layers): the accumulation alone takes 8% off a forward.
RMSNorm, rotary embedding and SiLU-times-gate were measured too: 2.7%, 2.4% and 3.4% of a forward, and PyTorch has nothing fused for
them on a CPU, so they stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from luthier.models import fast_tuners, rows
from luthier.models.fast_tuners import Forward

_plain: ContextVar[bool] = ContextVar("plain", default=False)


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


class _DoraLinear(torch.autograd.Function):
    """y = f * (x W^T + s (x A^T) B^T) + b with f = m / norm; shapes as above, m and norm (out,). The norm is taken as constant."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        magnitude: Tensor,
        norm: Tensor,
        scale: float,
    ) -> Tensor:
        low = x @ a.t()
        direction = nn.functional.linear(x, weight)
        direction.addmm_(low, b.t(), alpha=scale)
        factor = magnitude / norm
        ctx.save_for_backward(x, weight, a, b, low, direction, factor, norm)
        ctx.scale = scale
        return direction * factor if bias is None else torch.addcmul(bias, direction, factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low, direction, factor, norm = ctx.saved_tensors
        of_magnitude = (direction * gradient).sum(0) / norm
        gradient = gradient * factor
        through = (gradient @ b).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ weight
            of_x.addmm_(through, a)
        return of_x, None, None, through.t() @ x, (gradient.t() @ low).mul_(ctx.scale), of_magnitude, None, None


def speed_up(module: nn.Module) -> int:
    """Give every tuner layer on a plain linear layer inside ``module`` the cheap forward, where there is one; returns how many have it.

    The layer decides at each call: several active adapters, rows with adapters of their own, merged weights, a bias in B, mixed dtypes or
    dropout while training go PEFT's own way. Calling it again does no harm.
    """
    from peft.tuners.adalora.layer import SVDLinear
    from peft.tuners.loha.layer import Linear as LohaLinear
    from peft.tuners.lokr.layer import Linear as LokrLinear
    from peft.tuners.lora.layer import Linear
    from peft.tuners.oft.layer import Linear as OftLinear
    from peft.tuners.vera.layer import Linear as VeraLinear

    others: dict[type, tuple[str, Forward]] = {
        SVDLinear: ("lora_A", _adalora),
        LohaLinear: ("hada_w1_a", fast_tuners.loha),
        LokrLinear: ("r", fast_tuners.lokr),
        OftLinear: ("oft_R", fast_tuners.oft),
        VeraLinear: ("vera_lambda_d", fast_tuners.vera),
    }
    count = 0
    for layer in module.modules():
        if type(getattr(layer, "base_layer", None)) is not nn.Linear:
            continue
        if type(layer) is Linear:
            layer.forward = MethodType(_lora_forward, layer)
        elif type(layer) in others:
            held, forward = others[type(layer)]
            layer.forward = MethodType(partial(_forward, held, forward), layer)
        else:
            continue
        count += 1
    return count


def _forward(held: str, forward: Forward, layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The cheap forward where the call is an ordinary one, else PEFT's. ``held``: the attribute that has an entry for each adapter."""
    name = _only_adapter(layer, args, kwargs)
    if name is not None and name in getattr(layer, held) and not _is_trained(layer.base_layer):
        found = forward(layer, name, x)
        if found is not None:
            return found
    out: Tensor = type(layer).forward(layer, x, *args, **kwargs)
    return out


@contextmanager
def plain_forwards() -> Iterator[None]:
    """While the block runs every layer goes PEFT's own way, whose gradients have gradients."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def _only_adapter(layer: Any, args: Any, kwargs: Any) -> str | None:
    """The one adapter that answers this call, or None where there is more to it."""
    if _plain.get() or args or kwargs or layer.merged or layer.disable_adapters or rows.current() is not None:
        return None
    active = layer.active_adapters
    return active[0] if len(active) == 1 else None


def _lora_forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """W x + (alpha / r) B A x, the second term accumulated into the first (Hu et al. 2022, equation 3); or DoRA's."""
    name = _only_adapter(layer, args, kwargs)
    if name is None or not _is_plain(layer, name, x):
        out: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return out
    a, b, base = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.base_layer
    scale = float(layer.scaling[name])
    if name in layer.lora_variant:
        magnitude = layer.lora_magnitude_vector[name].weight
        norm = _norm(layer, name, base.weight.detach(), a.detach(), b.detach(), scale)
        return _flat(_DoraLinear, x, base.weight, base.bias, a, b, magnitude, norm, scale)
    if torch.is_grad_enabled() and (x.requires_grad or a.requires_grad) and not _is_trained(base):
        return _flat(_LoraLinear, x, base.weight, base.bias, a, b, scale)
    whole: Tensor = base(x)
    low = nn.functional.linear(x, a)
    flat = whole.view(-1, whole.shape[-1])
    flat = flat.addmm_(low.view(-1, low.shape[-1]), b.t(), alpha=scale)
    return flat.view(whole.shape)


def _norm(layer: Any, name: str, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """||W + s B A|| of every row, by ||W||^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>: the sum of the matrices is never formed.

    Rounded to the dtype of W as PEFT's is, so that the factor is one at the start. ||W||^2 is kept with the layer, and without gradients
    in eval mode the whole norm too, until something it was made of is another.
    """
    held: dict[str, Any] = layer.__dict__.setdefault("luthier_norms", {})
    is_answering = not (layer.training or torch.is_grad_enabled())
    of_weight = (weight.data_ptr(), weight._version)
    of_all = (*of_weight, a.data_ptr(), a._version, b.data_ptr(), b._version, scale)
    if not is_answering:
        held.pop(name, None)
    elif name in held and held[name][0] == of_all:
        return cast(Tensor, held[name][1])
    if held.get("", (None,))[0] != of_weight:
        held[""] = of_weight, torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).square_()
    low, high = a.float(), b.float()
    cross = ((weight @ a.t()).float() * high).sum(1)
    own = ((high @ (low @ low.t())) * high).sum(1)
    norm: Tensor = (held[""][1] + 2.0 * scale * cross + scale * scale * own).clamp_min_(0.0).sqrt_().to(weight.dtype)
    if is_answering:
        held[name] = of_all, norm
    return norm


def _adalora(layer: Any, name: str, x: Tensor) -> Tensor | None:
    """LoRA with E between A and B (Zhang et al. 2023, equation 3), as PEFT scales it."""
    a, b, base = layer.lora_A[name], layer.lora_B[name], layer.base_layer
    if layer.training and isinstance(layer.lora_dropout[name], nn.Dropout):
        return None
    if x.device.type != "cpu" or not x.dtype == a.dtype == b.dtype == base.weight.dtype:
        return None  # elsewhere than on a CPU, reading the number of ranks would wait for the device
    scale = layer.scaling[name] / (layer.ranknum[name].detach().item() + 1e-5)
    return _flat(_LoraLinear, x, base.weight, base.bias, a * layer.lora_E[name], b, scale)


def _flat(function: Any, x: Tensor, *rest: Any) -> Tensor:
    """Apply an autograd function of (tokens, in) to x (..., in)."""
    return cast(Tensor, function.apply(x.reshape(-1, x.shape[-1]), *rest)).view(*x.shape[:-1], -1)


def _is_trained(base: nn.Linear) -> bool:
    return base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)


def _is_plain(layer: Any, name: str, x: Tensor) -> bool:
    """Whether LoRA, or DoRA on a frozen base, is all there is to the layer."""
    if name not in layer.lora_A:
        return False
    a, b, dtype = layer.lora_A[name], layer.lora_B[name], layer.base_layer.weight.dtype
    if b.bias is not None or not x.dtype == a.weight.dtype == b.weight.dtype == dtype:
        return False
    if name in layer.lora_variant:
        from peft.tuners.lora.variants import DoraLinearVariant

        if type(layer.lora_variant[name]) is not DoraLinearVariant or _is_trained(layer.base_layer):
            return False
        if layer.lora_magnitude_vector[name].weight.dtype != dtype:
            return False
    return not (layer.training and isinstance(layer.lora_dropout[name], nn.Dropout))
