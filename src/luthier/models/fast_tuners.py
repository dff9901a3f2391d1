"""Cheaper forwards, and backwards that are worth it, for PEFT's tuner layers other than LoRA's; ``models.fast`` puts them in.

Each computes what PEFT's layer computes (in fp32 to 1e-5, outputs and gradients; see the tests), with fewer products and fewer passes over
tensors of the output's size. ``None`` instead of a result means that the layer must go PEFT's own way: dropout, options that are not covered.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Forward = Callable[[Any, str, Tensor], Tensor | None]
"""(layer, adapter's name, x (..., in)) -> (..., out), or None."""


class _Vera(torch.autograd.Function):
    """y = x W^T + bias + b * ((d * (x A^T)) B^T); shapes: x (tokens, in), A (rank, in), B (out, rank), d (rank,), b (out,). A and B are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, d: Tensor, by: Tensor
    ) -> Tensor:
        low = x @ a.t()
        up = (low * d) @ b.t()
        y = nn.functional.linear(x, weight, bias).addcmul_(up, by)
        ctx.save_for_backward(weight, a, b, d, by, low, up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, a, b, d, by, low, up = ctx.saved_tensors
        through = (gradient * by) @ b
        of_d, of_by = (through * low).sum(0), (gradient * up).sum(0)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ weight
            of_x.addmm_(through.mul_(d), a)
        return of_x, None, None, None, None, of_d, of_by


def vera(layer: Any, name: str, x: Tensor) -> Tensor | None:
    """VeRA (Kopiczko et al. 2024, equation 2) in one function that keeps no frozen weight's gradient."""
    d, by, base = layer.vera_lambda_d[name], layer.vera_lambda_b[name], layer.base_layer
    if layer.training and isinstance(layer.vera_dropout[name], nn.Dropout):
        return None
    a, b = layer.vera_A[name][:, : layer.in_features], layer.vera_B[name][: layer.out_features]
    if a.requires_grad or b.requires_grad or not x.dtype == a.dtype == d.dtype == base.weight.dtype:
        return None
    return _flat(_Vera, x, base.weight, base.bias, a, b, d, by)


class _Hadamard(torch.autograd.Function):
    """y = x (W + s (A1 B1) * (A2 B2))^T + bias; A (out, rank), B (rank, in).

    One product with the sum of the weights in fp32. In 16 bits the sum would round a small correction away, so there the forward takes two.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, factors: float, *four: Tensor) -> Tensor:
        a1, b1, a2, b2 = four
        change = (a1 @ b1).mul_(a2 @ b2).mul_(factors)
        ctx.save_for_backward(x, weight, *four)
        ctx.scale = factors
        if x.dtype == torch.float32:
            return nn.functional.linear(x, change.add_(weight), bias)
        return nn.functional.linear(x, weight, bias).addmm_(x, change.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a1, b1, a2, b2 = ctx.saved_tensors
        first, second = a1 @ b1, a2 @ b2
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ torch.addcmul(weight, first, second, value=ctx.scale)
        of_change = (gradient.t() @ x).mul_(ctx.scale)
        second.mul_(of_change)
        of_change.mul_(first)
        return of_x, None, None, None, second @ b1.t(), a1.t() @ second, of_change @ b2.t(), a2.t() @ of_change


def loha(layer: Any, name: str, x: Tensor) -> Tensor | None:
    """LoHa (Hyeon-Woo et al. 2022, proposition 1)."""
    if _drops(layer, name) or name in layer.hada_t1:
        return None
    base = layer.base_layer
    four = tuple(getattr(layer, f"hada_{part}")[name] for part in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if not x.dtype == four[0].dtype == base.weight.dtype:
        return None
    return _flat(_Hadamard, x, base.weight, base.bias, float(layer.scaling[name]), *four)


def lokr(layer: Any, name: str, x: Tensor) -> Tensor | None:
    """LoKr: (C x (B A)) x without the Kronecker product, by the rule (C x M) vec(X) = vec(M X C^T) (Van Loan 2000, section 2)."""
    if _drops(layer, name) or name in layer.lokr_t2:
        return None
    base, scale = layer.base_layer, float(layer.scaling[name])
    first = layer.lokr_w1[name] if name in layer.lokr_w1 else layer.lokr_w1_a[name] @ layer.lokr_w1_b[name]
    if not x.dtype == first.dtype == base.weight.dtype:
        return None
    first = first * scale
    if name in layer.lokr_w2:
        sides = [layer.lokr_w2[name]]
    else:
        sides = [layer.lokr_w2_b[name], layer.lokr_w2_a[name]]
    tokens, c = x.numel() // x.shape[-1], first.shape[1]
    low = nn.functional.linear(x.reshape(tokens * c, -1), sides[0])  # (tokens c, rank), or (tokens c, b)
    mixed = nn.functional.linear(low.view(tokens, c, -1).transpose(1, 2), first).transpose(1, 2)  # (tokens, a, .)
    change = nn.functional.linear(mixed, sides[1]) if len(sides) > 1 else mixed
    whole: Tensor = base(x)
    whole += change.reshape(whole.shape)
    return whole


class _Cayley(torch.autograd.Function):
    """R = (I - Q)(I + Q)^-1 = 2 (I + Q)^-1 - I of skew-symmetric Q, given by its upper triangle: (blocks, n (n - 1) / 2) -> (blocks, n, n).

    The gradient needs the inverse that is there already: dL/dQ = -(I + Q)^-T (2 dL/dR) (I + Q)^-T.
    """

    @staticmethod
    def forward(ctx: Any, triangle: Tensor, size: int) -> Tensor:
        upper, lower = _triangle(size, triangle.device)
        values = triangle.float()
        q = values.new_zeros(len(values), size * size)
        q.index_copy_(1, upper, values)
        q.index_copy_(1, lower, -values)
        q[:, :: size + 1] = 1.0
        inverse = torch.linalg.inv(q.view(-1, size, size))
        ctx.save_for_backward(inverse)
        r: Tensor = inverse * 2.0
        r.diagonal(dim1=1, dim2=2).sub_(1.0)
        return r.to(triangle.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inverse,) = ctx.saved_tensors
        size, turned = inverse.shape[-1], inverse.transpose(1, 2)
        of_q = (turned @ gradient.float() @ turned).mul_(-2.0).view(-1, size * size)
        upper, lower = _triangle(size, inverse.device)
        return (of_q[:, upper] - of_q[:, lower]).to(gradient.dtype), None


@lru_cache(maxsize=16)
def _triangle(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places of the upper triangle, row by row, and of their mirror images, in a flattened square matrix."""
    rows, columns = torch.triu_indices(size, size, 1, device=device)
    return rows * size + columns, columns * size + rows


def oft(layer: Any, name: str, x: Tensor) -> Tensor | None:
    """OFT (Qiu et al. 2023) with the exact Cayley transform: one inverse in the forward, none in the backward."""
    turn = layer.oft_R[name]
    if (
        turn.coft
        or turn.use_cayley_neumann
        or (layer.training and not isinstance(layer.oft_dropout[name], nn.Identity))
    ):
        return None
    if not x.dtype == turn.weight.dtype == layer.base_layer.weight.dtype:
        return None
    size = turn.block_size
    blocks = cast(Tensor, _Cayley.apply(turn.weight, size))  # type: ignore[no-untyped-call]
    count = x.shape[-1] // size
    flat = x.reshape(-1, count, size).transpose(0, 1)
    turned = torch.bmm(flat, blocks.expand(count, -1, -1)).transpose(0, 1)
    out: Tensor = layer.base_layer(turned.reshape(x.shape))
    return out


def _drops(layer: Any, name: str) -> bool:
    """Whether a LyCORIS layer leaves something out at random now."""
    return bool(layer.training and (layer.rank_dropout[name] or layer.module_dropout[name]))


def _flat(function: Any, x: Tensor, *rest: Any) -> Tensor:
    """Apply an autograd function of (tokens, in) to x (..., in)."""
    return cast(Tensor, function.apply(x.reshape(-1, x.shape[-1]), *rest)).view(*x.shape[:-1], -1)
