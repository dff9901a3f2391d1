"""The chunked cross-entropy against torch's, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from luthier.objectives import _loss
from luthier.objectives._loss import Loss, Totals, linear_cross_entropy


@pytest.mark.parametrize("rows", [1, 4, 5, 11])
@pytest.mark.parametrize("with_bias", [True, False])
def test_value_and_every_gradient(rows: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loss, "CHUNK", 4)
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 6, generator=generator, requires_grad=True)
    weight = torch.randn(13, 6, generator=generator, requires_grad=True)
    bias = torch.randn(13, generator=generator, requires_grad=True) if with_bias else None
    targets = torch.randint(0, 13, (rows,), generator=generator)
    inputs = [t for t in (hidden, weight, bias) if t is not None]
    ours = linear_cross_entropy(hidden, weight, bias, targets)
    theirs = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours * 0.3, inputs), torch.autograd.grad(theirs * 0.3, inputs), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_frozen_weight_gets_no_gradient_and_no_grad_mode_works() -> None:
    hidden = torch.randn(3, 6, requires_grad=True)
    weight = torch.randn(13, 6)
    targets = torch.tensor([0, 5, 12])
    value = linear_cross_entropy(hidden, weight, None, targets)
    value.backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.inference_mode():
        torch.testing.assert_close(linear_cross_entropy(hidden.detach(), weight, None, targets), value.detach())


def test_a_token_that_the_model_rules_out_costs_what_its_logits_say() -> None:
    hidden = torch.tensor([[200.0, 0.0], [0.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([1, 2])
    ours = linear_cross_entropy(hidden, weight, None, targets)
    theirs = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    assert theirs > 400
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, hidden), torch.autograd.grad(theirs, hidden))


def test_bf16_stays_close_to_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 32, generator=generator)
    weight = torch.randn(200, 32, generator=generator) * 0.2
    targets = torch.randint(0, 200, (40,), generator=generator)
    exact = F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")
    low = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), None, targets)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=2e-3)


def test_totals_weigh_batches_by_their_count() -> None:
    totals = Totals()
    totals.add(Loss(torch.tensor(1.0), 1, {"accuracy": 1.0}))
    totals.add(Loss(torch.tensor(3.0), 3, {"accuracy": 0.0}))
    assert totals.means() == {"loss": 2.5, "accuracy": 0.25}
    assert Totals().means() == {}
