"""Two copies of a small model and a few gradients: one copy goes by an optimizer of the catalogue, the other by a reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from tests.training.toy import Stack, toy_stack
from torch import nn

from luthier.training.config import Chosen
from luthier.training.optimizer import Optimizer, builder

RATE, DECAY = 1e-2, 0.1


def optimizer(module: nn.Module, name: str, *, decay: float = DECAY, **options: Any) -> Optimizer:
    return Optimizer(module, builder(Chosen(name=name, **options)), weight_decay=decay)


def backward(module: nn.Module, seed: int) -> None:
    """Gradients of a loss on random inputs, the same for the same seed."""
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    dtype = next(module.parameters()).dtype
    (module(inputs.to(dtype)).squeeze(-1).float() - inputs.sum(1).sin()).square().mean().backward()


def decayed(module: nn.Module) -> list[dict[str, Any]]:
    """torch's parameter groups: weight decay on matrices only."""
    return [
        {"params": [p for p in module.parameters() if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]


def hidden(module: Stack) -> list[nn.Parameter]:
    return [p for p in module.layers.parameters() if p.ndim == 2]


def compare(
    name: str,
    reference: Callable[[Stack], Callable[[], None]],
    *,
    steps: int = 12,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    **options: Any,
) -> None:
    """``reference`` takes a model and returns what makes a step on its gradients."""
    ours = toy_stack(dropout=0.0)
    theirs = copy.deepcopy(ours)
    before = copy.deepcopy(ours.state_dict())
    rule, step = optimizer(ours, name, **options), reference(theirs)
    for seed in range(steps):
        theirs.load_state_dict(ours.state_dict())  # so that a difference of rounding does not grow with the steps
        backward(ours, seed)
        rule.accumulate()
        rule.step(RATE, clip=0)
        theirs.zero_grad()
        backward(theirs, seed)
        step()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=rtol, atol=atol)
    for key, value in ours.state_dict().items():
        assert not torch.equal(value, before[key]), f"{key} never moved"
