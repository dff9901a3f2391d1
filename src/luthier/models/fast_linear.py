"""Linear layers in fp32 through oneDNN on processors where PyTorch's own choice is slow.

PyTorch computes fp32 products with MKL, which keeps its AVX-512 kernels to Intel's processors; oneDNN, which is in the same wheel and
computes the 16-bit products already, uses what the processor has. Measured on Zen 5, one core, 256 x 576 x 1536: 105 GFLOP/s against
260. Both sum in fp32; results differ by rounding.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

LEAST_ROWS = 3
LARGE_WEIGHT = 2**23
"""With fewer rows a call costs more than it saves, unless the weight is as large as an output layer's."""


def speed_up_linear(module: nn.Module) -> int:
    """Give the fp32 linear layers inside ``module`` the faster product where there is one; returns how many have it.

    It is used without gradients only. A layer decides at each call, so its weights may be moved or cast afterwards. Calling it again
    does no harm.
    """
    if not is_worth_it():
        return 0
    count = 0
    for layer in module.modules():
        if type(layer) is nn.Linear and layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu":
            if "forward" not in vars(layer):  # it has this one, or another that calls it
                layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
            count += 1
    return count


@lru_cache(maxsize=1)
def is_worth_it() -> bool:
    """Whether this is an AMD processor under a PyTorch with MKL and oneDNN: a rule and not a timing, so that numbers repeat."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    known: bool = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return "AuthenticAMD" in text and known and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _forward(layer: Any, x: Tensor) -> Tensor:
    """x W^T + b; x (..., in)."""
    weight, bias = layer.weight, layer.bias
    rows = x.numel() // x.shape[-1]
    fits = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    if torch.is_grad_enabled() or not fits or (rows < LEAST_ROWS and weight.numel() < LARGE_WEIGHT):
        return nn.functional.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], None)
    return out
