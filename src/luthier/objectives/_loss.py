"""What every objective returns, and the cross-entropy that language models share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """``value``: a scalar with a gradient, the mean over ``count`` tokens or examples. ``metrics``: further means over the same.

    ``outcomes``: what the objective's ``figures`` needs of each row for metrics that are no means (a correlation, an F1 over a set).
    """

    value: Tensor
    count: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    outcomes: tuple[Any, ...] = ()


class Totals:
    """Sums losses of several batches into means over all that they count."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, loss: Loss) -> None:
        """Take one batch in."""
        self._count += loss.count
        for name, value in {"loss": float(loss.value.detach()), **loss.metrics}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value) * loss.count

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {"sums": self._sums, "count": self._count}

    def take(self, other: Mapping[str, Any]) -> None:
        """Add what another has counted, in its plain form."""
        self._count += other["count"]
        for name, total in other["sums"].items():
            self._sums[name] = self._sums.get(name, 0.0) + total

    def means(self) -> dict[str, float]:
        """``loss`` and each metric; empty when nothing was counted."""
        return {name: total / self._count for name, total in self._sums.items()} if self._count else {}


CHUNK = 128
"""Rows of logits in memory at once: 128 rows of 50 thousand logits, held as bf16 and twice as fp32, are 64 MB."""

_TINY = 1e-30
"""Below this a probability in fp32 has lost digits, and its logarithm is computed from the logits."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(hidden @ weight.T + bias)[targets], chunk by chunk, with the gradient made on the way.

    No more than one chunk of logits exists at any time, always in the same memory, and none is computed twice (the idea of Wijmans et
    al. 2024, "Cut your losses", and of Liger Kernel, Hsu et al. 2024). d loss / d logits = softmax - onehot.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, hits: Tensor | None
    ) -> Tensor:
        wanted = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if wanted[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        shape = (min(CHUNK, len(hidden)), len(weight))
        low = hidden.new_empty(shape)
        logits, shares = (torch.empty(shape, dtype=torch.float32, device=hidden.device) for _ in range(2))
        for start in range(0, len(hidden), CHUNK):
            rows, wished = hidden[start : start + CHUNK], targets[start : start + CHUNK, None]
            low, logits, shares = low[: len(rows)], logits[: len(rows)], shares[: len(rows)]
            torch.mm(rows, weight.t(), out=low)
            if bias is not None:
                low.add_(bias)
            torch.softmax(logits.copy_(low), -1, out=shares)
            if hits is not None:
                hits += (shares.argmax(-1, keepdim=True) == wished).sum()
            right = shares.gather(1, wished)
            total -= log_of(right, logits, wished).sum()
            if not any(wanted):
                continue
            slope = low.copy_(shares.scatter_(1, wished, right - 1.0))
            if grad_hidden is not None:
                torch.mm(slope, weight, out=grad_hidden[start : start + CHUNK])
            if grad_weight is not None:
                grad_weight += slope.T @ rows
            if grad_bias is not None:
                grad_bias += slope.sum(0, dtype=torch.float32)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grads = [
            None if grad is None else (grad * upstream[0]).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*grads, None, None)


def log_of(right: Tensor, logits: Tensor, wished: Tensor) -> Tensor:
    """log of the probabilities ``right`` (rows, 1) of the tokens ``wished``; of those that fp32 cannot hold well, from the logits."""
    out = right.log()
    lost = (right < _TINY).flatten()
    if bool(lost.any()):
        out[lost] = logits[lost].gather(1, wished[lost]) - logits[lost].logsumexp(-1, keepdim=True)
    return out


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, hits: Tensor | None = None
) -> Tensor:
    """Sum over rows of the cross-entropy of ``hidden @ weight.T + bias`` against ``targets``, in nats, fp32.

    hidden (rows, width), weight (vocabulary, width), bias (vocabulary) or None, targets (rows) of token ids. To ``hits``, a scalar of
    whole numbers, is added how many targets are the likeliest of their row.
    """
    result: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets, hits)  # type: ignore[no-untyped-call]
    return result
