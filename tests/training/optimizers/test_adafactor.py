"""Adafactor: the paper's algorithm 4 written out, and torch's own implementation where the two ask for the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.training.optimizers.reference import DECAY, RATE, compare
from tests.training.toy import Stack

from luthier.core.catalog import load
from luthier.training.optimizers._update import Trained


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_equals_the_algorithm_of_the_paper(beta1: float) -> None:
    def reference(model: Stack) -> Callable[[], None]:
        states: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {p: {} for p in model.parameters()}
        count = 0

        def step() -> None:
            nonlocal count
            count += 1
            decay_of_second = 1 - count**-0.8
            with torch.no_grad():
                for p, state in states.items():
                    assert p.grad is not None
                    squared = p.grad**2 + 1e-30
                    if p.ndim == 2:
                        rows = state.setdefault("rows", torch.zeros(p.shape[0], 1))
                        columns = state.setdefault("columns", torch.zeros(1, p.shape[1]))
                        rows.copy_(decay_of_second * rows + (1 - decay_of_second) * squared.sum(1, keepdim=True))
                        columns.copy_(decay_of_second * columns + (1 - decay_of_second) * squared.sum(0, keepdim=True))
                        second = rows @ columns / rows.sum()
                    else:
                        second = state.setdefault("second", torch.zeros_like(p))
                        second.copy_(decay_of_second * second + (1 - decay_of_second) * squared)
                    change = p.grad / second.sqrt()
                    change = RATE * change / max(1.0, float(change.square().mean().sqrt()))
                    if beta1:
                        first = state.setdefault("first", torch.zeros_like(p))
                        change = first.copy_(beta1 * first + (1 - beta1) * change)
                    if p.ndim == 2:
                        p.mul_(1 - RATE * DECAY)
                    p.sub_(change)

        return step

    compare("adafactor", reference, beta1=beta1)


def test_relative_steps_equal_torch() -> None:
    def reference(model: Stack) -> Callable[[], None]:
        return torch.optim.Adafactor(model.parameters(), lr=RATE, eps=(1e-15, 1e-3)).step

    compare("adafactor", reference, scale_parameter=True, decay=0.0)


def test_what_it_keeps_of_a_matrix_is_a_row_and_a_column() -> None:
    entry = load("optimizers", "adafactor")
    shapes = [Trained((100, 30)), Trained((7,)), Trained((2, 5, 3))]
    assert entry.module.cost(shapes, entry.configure()).state_bytes == 4 * (130 + 7 + 2 * (5 + 3))
    with_first = entry.module.cost(shapes, entry.configure({"beta1": 0.9})).state_bytes
    assert with_first == 4 * (130 + 7 + 16) + 4 * (3000 + 7 + 30)
