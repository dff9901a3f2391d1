"""8-bit AdamW: the update in blocks against the paper written out, and against bitsandbytes' own optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.training.optimizers.reference import DECAY, RATE, optimizer
from torch import nn

from luthier.training.optimizers import adamw_8bit

functional = pytest.importorskip("bitsandbytes.functional")

SIZES = {"table": (3, 700), "matrix": (30, 41), "vector": (9,)}


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(*SIZES["table"])
        self.matrix = nn.Parameter(torch.randn(SIZES["matrix"]))
        self.vector = nn.Parameter(torch.randn(SIZES["vector"]))


def give_gradients(model: Parts, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator) * 10 ** torch.randn((), generator=generator)
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad.copy_(gradient)


def dynamic_levels(*, signed: bool) -> torch.Tensor:
    """Dynamic tree quantization (Dettmers 2016, 2022 section 2.2): an indicator bit ends the exponent, the bits after it are a linear
    fraction in [0.1, 1); 0 and 1 are levels too."""
    bits = 7 if signed else 8
    levels = [0.0, 1.0]
    for exponent in range(7):  # 10^-6 ... 10^0
        count = 2 ** (exponent + bits - 7)
        edges = torch.linspace(0.1, 1, count + 1, dtype=torch.float64)
        means = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (exponent - 6)
        levels += [*means.tolist(), *((-means).tolist() if signed else [])]
    return torch.tensor(sorted(levels), dtype=torch.float64).float()


@pytest.mark.parametrize("signed", [True, False])
def test_the_levels_are_those_of_the_paper(signed: bool) -> None:
    torch.testing.assert_close(functional.create_dynamic_map(signed=signed), dynamic_levels(signed=signed))


def nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Each block of 256 over its largest magnitude, as the nearest level's number."""
    blocks = [values[start : start + 256] for start in range(0, len(values), 256)]
    return torch.cat([(block[:, None] / block.abs().max() - levels).abs().argmin(1) for block in blocks])


def test_equals_adam_with_moments_rounded_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw_8bit, "_PIECE", 512)  # so that a parameter is several pieces
    ours = Parts()
    rule = optimizer(ours, "adamw_8bit", min_size=1000)
    levels = {i: dynamic_levels(signed=i == 1) for i in (1, 2)}

    def codes(i: int) -> torch.Tensor:
        return rule.state()[f"quantized.codes{i}.matrix"].long()

    def moment(i: int) -> torch.Tensor:
        scales = rule.state()[f"quantized.scales{i}.matrix"].repeat_interleave(256)[: ours.matrix.numel()]
        return levels[i][codes(i)] * scales

    for step in range(1, 9):
        give_gradients(ours, step)
        gradient = ours.matrix.grad.clone().reshape(-1)  # type: ignore[union-attr]
        weights = ours.matrix.detach().clone().reshape(-1)
        first, second = 0.9 * moment(1) + 0.1 * gradient, 0.999 * moment(2) + 0.001 * gradient**2
        divisor = (second / (1 - 0.999**step)).sqrt() + 1e-8
        expected = weights * (1 - RATE * DECAY) - RATE * first / (1 - 0.9**step) / divisor
        rule.step(RATE, clip=0)
        torch.testing.assert_close(ours.matrix.detach().reshape(-1), expected, rtol=1e-4, atol=1e-6)
        for i, values in ((1, first), (2, second)):
            best = levels[i][nearest(values, levels[i])]
            kept, scales = levels[i][codes(i)], rule.state()[f"quantized.scales{i}.matrix"]
            shares = values / scales.repeat_interleave(256)[: len(values)]
            worse = (kept - shares).abs() - (best - shares).abs()
            assert worse.max() < 1e-4, "the nearest level, or one as near"


def test_equals_the_optimizer_of_bitsandbytes_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw_8bit, "_PIECE", 512)
    optim = pytest.importorskip("bitsandbytes.optim")
    ours = Parts()
    theirs = copy.deepcopy(ours)
    groups = [{"params": [p], "weight_decay": DECAY if p.ndim >= 2 else 0.0} for p in theirs.parameters()]
    reference = optim.AdamW8bit(groups, lr=RATE, min_8bit_size=1000)
    rule = optimizer(ours, "adamw_8bit", min_size=1000, embeddings=True)
    for seed in range(10):
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        rule.step(RATE, clip=0)
        reference.step()
    assert torch.equal(ours.matrix, theirs.matrix)
    assert torch.equal(ours.table.weight, theirs.table.weight)
    torch.testing.assert_close(ours.vector, theirs.vector)


def test_embeddings_and_small_parameters_keep_fp32_moments() -> None:
    model = Parts()
    rule = optimizer(model, "adamw_8bit", min_size=1000)
    give_gradients(model, 0)
    rule.step(RATE, clip=0)
    kept = {key.split(".", 2)[2] for key in rule.state() if key.startswith("quantized.codes1.")}
    assert kept == {"matrix"}
    assert {key for key in rule.state() if key.startswith("state.exp_avg.")} == {
        "state.exp_avg.table.weight",
        "state.exp_avg.vector",
    }
