"""Muon: torch's for hidden matrices and torch's AdamW for the rest; the orthogonalisation written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from tests.training.optimizers.reference import DECAY, RATE, compare, hidden, optimizer
from tests.training.toy import Stack, toy_module, toy_stack

from luthier.core.errors import InputError
from luthier.training.optimizer import trained


def adam_of_the_rest(model: Stack, epsilon: float = 1e-8) -> torch.optim.AdamW:
    taken = {id(p) for p in hidden(model)}
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [{"params": [p], "weight_decay": DECAY if p.ndim >= 2 else 0.0} for p in rest]
    return torch.optim.AdamW(groups, lr=RATE, eps=epsilon)


@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
def test_equals_torch_on_hidden_matrices_and_adamw_elsewhere(scale: Literal["match_rms_adamw", "original"]) -> None:
    def reference(model: Stack) -> Callable[[], None]:
        muon = torch.optim.Muon(hidden(model), lr=RATE, weight_decay=DECAY, adjust_lr_fn=scale)
        adam = adam_of_the_rest(model)

        def step() -> None:
            muon.step()
            adam.step()

        return step

    compare("muon", reference, scale=scale)


def test_equals_the_iteration_written_out() -> None:
    model = toy_stack(dropout=0.0)
    rule = optimizer(model, "muon")
    momenta = {p: torch.zeros_like(p) for p in hidden(model)}
    for seed in range(3):
        before = {p: p.detach().clone() for p in momenta}
        for p, m in momenta.items():
            assert p.grad is not None
            p.grad.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
            m.copy_(0.95 * m + 0.05 * p.grad)
        looked_ahead = {p: (0.95 * m + 0.05 * p.grad).double() for p, m in momenta.items()}  # type: ignore[operator]
        rule.step(RATE, clip=0)
        for p, start in looked_ahead.items():
            x = start / start.norm()
            for _ in range(5):  # Jordan 2024: phi(x) = 3.4445 x - 4.775 x^3 + 2.0315 x^5 on singular values
                x = 3.4445 * x - 4.775 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
            expected = RATE * 0.2 * math.sqrt(max(p.shape)) * x + RATE * DECAY * before[p]
            assert (before[p] - p - expected).norm() < 0.02 * expected.norm(), "torch iterates in bf16"


def test_only_matrices_of_repeated_layers_are_hidden() -> None:
    known = trained(toy_stack())
    assert {name for name, each in known.items() if each.hidden} == {
        f"layers.{layer}.{part}.weight" for layer in (0, 1) for part in (0, 3)
    }


def test_nothing_for_it_to_do_is_said() -> None:
    with pytest.raises(InputError, match="optimizer muon is for the matrices of hidden layers") as raised:
        optimizer(toy_module(), "muon")
    assert raised.value.hint == "train.optimizer=adamw"
