"""AdamW of the catalogue against torch's, with other options than the default; tests/training/test_optimizer.py has the rest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tests.training.optimizers.reference import RATE, compare, decayed, optimizer
from tests.training.toy import Stack, toy_stack

from luthier.training.optimizer import Optimizer


def test_options_reach_torch() -> None:
    def reference(model: Stack) -> Callable[[], None]:
        return torch.optim.AdamW(decayed(model), lr=RATE, betas=(0.8, 0.95), eps=1e-4).step

    compare("adamw", reference, beta1=0.8, beta2=0.95, epsilon=1e-4)


def test_it_is_the_default_and_its_state_keeps_its_names() -> None:
    model = toy_stack()
    state = Optimizer(model).state()
    assert set(state) == {f"master.{name}" for name, _ in model.named_parameters()} | {"step.0", "step.1"}
    named = optimizer(toy_stack(), "adamw")
    assert all(torch.equal(value, named.state()[key]) for key, value in state.items())
