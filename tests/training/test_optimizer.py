"""Master-weight AdamW against torch's own optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from luthier.training.optimizer import Optimizer


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), nn.LayerNorm(13), nn.Linear(13, 3))


def torch_adamw(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2)


def test_equals_torch_adamw_with_decay_on_matrices_only_and_clipping() -> None:
    model = small_model()
    reference = copy.deepcopy(model)
    ours, theirs = Optimizer(model, weight_decay=0.1), torch_adamw(reference, 0.1)
    for step in range(20):
        batch = torch.randn(5, 7, generator=torch.Generator().manual_seed(step))
        model(batch).square().mean().backward()
        ours.accumulate()
        norm = ours.step(1e-2, clip=0.5)
        theirs.zero_grad()
        reference(batch).square().mean().backward()
        expected = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        theirs.step()
        assert norm == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_micro_batches_add_up() -> None:
    model = small_model()
    whole = copy.deepcopy(model)
    batch = torch.randn(6, 7)
    one, other = Optimizer(model), Optimizer(whole)
    for part in batch.split(2):
        (model(part).square().sum() / 6).backward()
        one.accumulate()
    (whole(batch).square().sum() / 6).backward()
    other.accumulate()
    assert one.step(1e-2, 0) == pytest.approx(other.step(1e-2, 0), rel=1e-5)
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_bf16_gradients_are_summed_in_fp32_and_each_step_begins_anew() -> None:
    model = small_model().to(torch.bfloat16)
    optimizer = Optimizer(model)
    for step in range(2):
        expected = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
        for part in range(3):
            twin = copy.deepcopy(model)
            twin.zero_grad()
            batch = torch.randn(5, 7, generator=torch.Generator().manual_seed(10 * step + part)).bfloat16()
            for each in (twin, model):
                each(batch).square().mean().backward()
            optimizer.accumulate()
            for name, parameter in twin.named_parameters():
                expected[name] += parameter.grad.float()
        for name, gradient in optimizer.gradients().items():
            assert torch.equal(gradient, expected[name])
        optimizer.step(1e-2, 0)
    assert all(not gradient.any() for gradient in optimizer.gradients().values())  # no backward, no gradient
    assert optimizer.step(1e-2, 0) == 0.0


def test_bf16_model_learns_from_steps_smaller_than_bf16_can_add() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = Optimizer(model)
    for _ in range(64):  # each step is 1e-4; bf16 around 1 moves in steps of 2^-8 = 4e-3
        model.weight.sum().backward()
        optimizer.accumulate()
        optimizer.step(1e-4, 0)
    assert optimizer.masters()["weight"].item() == pytest.approx(1 - 64e-4, abs=1e-4)
    assert model.weight.item() == pytest.approx(1 - 64e-4, abs=4e-3)
    assert model.weight.item() < 1


def test_mixed_dtypes_and_frozen_parameters() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4).to(torch.bfloat16), "head": nn.Linear(4, 2)})
    model["body"].bias.requires_grad_(False)
    before = model["body"].bias.clone()
    optimizer = Optimizer(model)
    assert set(optimizer.masters()) == {"body.weight", "head.weight", "head.bias"}
    assert all(t.dtype == torch.float32 for t in optimizer.masters().values())
    model["head"](model["body"](torch.ones(1, 4, dtype=torch.bfloat16)).float()).sum().backward()
    optimizer.accumulate()
    assert optimizer.step(1e-2, 1.0) > 0
    assert torch.equal(model["body"].bias, before)
    assert model["body"].weight.dtype == torch.bfloat16


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    optimizer = Optimizer(model)
    (model(torch.ones(1, 7)).sum() * float("nan")).backward()
    optimizer.accumulate()
    norm = optimizer.step(1e-2, 1.0)
    assert norm != norm
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_state_goes_on_exactly_and_release_frees_the_parameters() -> None:
    def steps(model: nn.Module, optimizer: Optimizer, seeds: range) -> None:
        for seed in seeds:
            batch = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
            model(batch).square().mean().backward()
            optimizer.accumulate()
            optimizer.step(1e-2, 1.0)

    straight = small_model().to(torch.bfloat16)
    broken = copy.deepcopy(straight)
    steps(straight, Optimizer(straight), range(8))
    first = Optimizer(broken)
    steps(broken, first, range(5))
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    other = small_model().to(torch.bfloat16)
    second = Optimizer(other)
    second.load_state(state)
    steps(other, second, range(5, 8))
    second.release()
    for a, b in zip(straight.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert b.grad is None
        assert b.untyped_storage().nbytes() == b.numel() * b.element_size()


def test_tied_weights_stay_tied() -> None:
    model = nn.ModuleDict({"in": nn.Embedding(5, 3), "out": nn.Linear(3, 5, bias=False)})
    model["out"].weight = model["in"].weight
    optimizer = Optimizer(model)
    model["out"](model["in"](torch.tensor([1]))).square().sum().backward()
    optimizer.accumulate()
    optimizer.step(1e-1, 0)
    optimizer.release()
    assert model["out"].weight is model["in"].weight
