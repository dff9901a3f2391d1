"""The small network of an adapter: down to few units, a nonlinearity, up to the model's width, and a scale.

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1: A(v) = W_up f(W_down v + b_down) + b_up. Its two
matrices may be sums of Kronecker products instead: Karimi Mahabadi et al. 2021, "Compacter", section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "tanh": torch.tanh,
}
"""By the names that transformers uses; silu is also known as swish."""


class Hypercomplex(nn.Module):
    """A linear layer whose weight is a sum of n Kronecker products, W = sum_i A_i kron (s_i t_i^T) (Compacter, equation 5).

    ``left`` s: (n, inputs / n), ``right`` t: (n, outputs / n), ``bias``: (outputs,). The n matrices A, (n, n, n), belong to the whole
    adapter and are given at each call; W has shape (inputs, outputs), and A_i maps blocks of inputs to blocks of outputs.
    """

    def __init__(self, inputs: int, outputs: int, n: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(n, inputs // n))
        self.right = nn.Parameter(torch.empty(n, outputs // n))
        self.bias = nn.Parameter(torch.zeros(outputs))
        for factor in (self.left, self.right):  # Glorot: each row is a matrix with one row or column
            nn.init.normal_(factor, std=math.sqrt(2 / (1 + factor.shape[1])))

    def forward(self, x: Tensor, rule: Tensor) -> Tensor:
        """x W + b, with W never written out: factor by factor it takes n (inputs + outputs) products a token, not inputs x outputs."""
        n = rule.shape[0]
        blocks = x.reshape(-1, n, self.left.shape[1])
        within = blocks @ self.left.t()  # (tokens, block of inputs p, i)
        across = torch.einsum("tpi,ipq->tqi", within, rule)
        out: Tensor = (across @ self.right).reshape(*x.shape[:-1], self.bias.shape[0])
        return out + self.bias


def new_rule(n: int) -> Tensor:
    """The matrices A, (n, n, n), at the start.

    The paper draws them small (1e-4) so that the adapter adds next to nothing. Here the right factor of the way up is zero, so it adds
    nothing at all, and A is drawn so that the way down has entries of a usual size from the first step.
    """
    return torch.randn(n, n, n) / (2 * n)


class Bottleneck(nn.Module):
    """A(v) = s (W_up f(W_down v + b_down) + b_up) for tokens v of ``width``, with ``size`` units between.

    W_up and b_up are zero at the start, so A(v) is. ``norm``: a layer norm of its own "before" the way down or "after" the way up.
    ``dropout`` on the units, while training. ``scale`` s, a number or, with ``learn_scale``, a parameter that starts there.
    ``hypercomplex`` n > 0 makes both matrices ``Hypercomplex``.
    """

    def __init__(
        self,
        width: int,
        size: int,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        norm: str = "none",
        scale: float = 1.0,
        learn_scale: bool = False,
        hypercomplex: int = 0,
    ) -> None:
        super().__init__()
        if hypercomplex:
            self.down: nn.Module = Hypercomplex(width, size, hypercomplex)
            self.up: nn.Module = Hypercomplex(size, width, hypercomplex)
            nn.init.zeros_(self.up.right)
        else:
            self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
            nn.init.zeros_(self.down.bias)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)
        self.before = nn.LayerNorm(width) if norm == "before" else None
        self.after = nn.LayerNorm(width) if norm == "after" else None
        self.scale = nn.Parameter(torch.tensor([float(scale)])) if learn_scale else None
        self.factor, self.dropout = float(scale), dropout
        self.activation = ACTIVATIONS[activation]

    def _raw(self, v: Tensor, rule: Tensor | None) -> Tensor:
        """A(v) / s, in a tensor that nothing else reads."""
        given = () if rule is None else (rule,)
        v = v.to(self.down.bias.dtype)  # type: ignore[arg-type]
        units = self.activation(self.down(v if self.before is None else self.before(v), *given))
        if self.training and self.dropout:
            units = functional.dropout(units, self.dropout)
        up: Tensor = self.up(units, *given)
        return up if self.after is None else self.after(up)

    def added(self, v: Tensor, rule: Tensor | None = None) -> Tensor:
        """A(v), which is added to something; ``rule``: the matrices A of a hypercomplex one."""
        raw = self._raw(v, rule)
        if self.scale is not None:
            return raw * self.scale
        return raw if self.factor == 1 else raw * self.factor

    def forward(self, v: Tensor, onto: Tensor, rule: Tensor | None = None) -> Tensor:
        """``onto`` + A(v) in the dtype of ``onto``, as a new tensor."""
        raw = self._raw(v, rule).to(onto.dtype)
        if self.scale is not None:
            return torch.addcmul(onto, raw, self.scale.to(onto.dtype))
        if self.factor == 1:
            return raw.add_(onto)  # the backward pass reads neither
        return torch.add(onto, raw, alpha=self.factor)
