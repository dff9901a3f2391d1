"""GaLore against the paper's algorithm 2 with a singular value decomposition, written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.training.optimizers.reference import DECAY, RATE, backward, compare, hidden, optimizer
from tests.training.optimizers.test_muon import adam_of_the_rest
from tests.training.toy import Stack, toy_stack

from luthier.core.errors import InputError
from luthier.training.optimizers.galore import leading_basis


def singular(gradient: torch.Tensor, rank: int) -> torch.Tensor:
    """Leading left singular vectors, the largest entry of each positive."""
    vectors = torch.linalg.svd(gradient.double()).U[:, :rank]
    return (vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()).float()


def test_equals_the_algorithm_of_the_paper() -> None:
    rank, every, alpha = 5, 4, 0.5

    def reference(model: Stack) -> Callable[[], None]:
        states: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {p: {} for p in hidden(model)}
        adam, count = adam_of_the_rest(model, 1e-3), 0

        def step() -> None:
            nonlocal count
            adam.step()
            with torch.no_grad():
                for p, state in states.items():
                    assert p.grad is not None
                    wide = p.shape[0] <= p.shape[1]
                    g = p.grad if wide else p.grad.T
                    if count % every == 0:
                        state["P"] = singular(g, rank)
                    r = state["P"].T @ g
                    m = state["M"] = 0.9 * state.get("M", torch.zeros_like(r)) + 0.1 * r
                    v = state["V"] = 0.999 * state.get("V", torch.zeros_like(r)) + 0.001 * r**2
                    n = (m / (1 - 0.9 ** (count + 1))) / ((v / (1 - 0.999 ** (count + 1))).sqrt() + 1e-3)
                    change = alpha * state["P"] @ n
                    p.sub_(RATE * ((change if wide else change.T) + DECAY * p))
            count += 1

        return step

    compare("galore", reference, rank=rank, update_every=every, scale=alpha, epsilon=1e-3)


@pytest.mark.parametrize("shape", [(6, 6), (6, 40)])
def test_the_basis_is_that_of_the_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(leading_basis(matrix, 4), singular(matrix, 4), rtol=1e-5, atol=1e-6)


def test_the_basis_changes_only_every_so_many_steps() -> None:
    model = toy_stack(dropout=0.0)
    rule = optimizer(model, "galore", rank=3, update_every=3)
    seen = []
    for seed in range(4):
        backward(model, seed)
        rule.accumulate()
        rule.step(RATE, clip=0)
        seen.append(rule.state()["projected.basis.layers.0.0.weight"].clone())
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[3])
    assert seen[0].shape == (16, 3)


def test_a_rank_that_nothing_exceeds_is_refused() -> None:
    with pytest.raises(InputError, match="onto rank 16, and none that is trained is larger"):
        optimizer(toy_stack(), "galore", rank=16)
    optimizer(toy_stack(), "galore", rank=15)
