"""Log-probabilities in chunks, against torch's own over all logits."""

from __future__ import annotations

import pytest
import torch

from luthier.objectives._log_probs import linear_log_probs

ROWS, WIDTH, WORDS = 300, 16, 50  # more than two chunks


@pytest.mark.parametrize("trained", ["hidden", "hidden and head", "head"])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(trained: str, bias: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(ROWS, WIDTH), torch.randn(WORDS, WIDTH)
    added = torch.randn(WORDS) if bias else None
    targets, upstream = torch.randint(0, WORDS, (ROWS,)), torch.randn(ROWS)
    results = []
    for ours in (True, False):
        parts = [hidden.clone().requires_grad_("hidden" in trained)]
        parts += [p.clone().requires_grad_("head" in trained) for p in (weight, added) if p is not None]
        one, head, more = parts[0], parts[1], parts[2] if bias else None
        if ours:
            values = linear_log_probs(one, head, more, targets)
        else:
            every = one @ head.T + (more if more is not None else 0)
            values = every.log_softmax(-1)[torch.arange(ROWS), targets]
        (values * upstream).sum().backward()
        results.append([values.detach(), *(p.grad for p in parts if p.requires_grad)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_an_answer_that_is_all_but_impossible() -> None:
    hidden = torch.tensor([[1.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[100.0, 0.0], [-100.0, 0.0]])
    values = linear_log_probs(hidden, weight, None, torch.tensor([1]))
    assert float(values.detach()) == -200.0
    values.sum().backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[-200.0, 0.0]]))


def test_without_gradients_the_values_are_the_same_bits() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(ROWS, WIDTH).bfloat16(), torch.randn(WORDS, WIDTH).bfloat16()
    targets = torch.randint(0, WORDS, (ROWS,))
    with torch.no_grad():
        bare = linear_log_probs(hidden, weight, None, targets)
    traced = linear_log_probs(hidden.requires_grad_(), weight, None, targets)
    assert torch.equal(bare, traced.detach())
