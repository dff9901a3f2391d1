"""Lion against the paper's algorithm 2 written out, and against bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.training.optimizers.reference import DECAY, RATE, compare, decayed
from tests.training.toy import Stack


def test_equals_the_algorithm_of_the_paper() -> None:
    def reference(model: Stack) -> Callable[[], None]:
        momenta = {p: torch.zeros_like(p) for p in model.parameters()}

        def step() -> None:
            with torch.no_grad():
                for p, m in momenta.items():
                    assert p.grad is not None
                    c = 0.8 * m + (1 - 0.8) * p.grad
                    decay = DECAY if p.ndim >= 2 else 0.0
                    p.sub_(RATE * (torch.sign(c) + decay * p))
                    m.copy_(0.97 * m + (1 - 0.97) * p.grad)

        return step

    compare("lion", reference, beta1=0.8, beta2=0.97)


def test_equals_bitsandbytes() -> None:
    optim = pytest.importorskip("bitsandbytes.optim")
    compare("lion", lambda model: optim.Lion32bit(decayed(model), lr=RATE, betas=(0.9, 0.99)).step)
