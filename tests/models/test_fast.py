from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from luthier.models.fast import speed_up


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def pair(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Any]:
    """The same adapted module as PEFT has it, and sped up."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["first", "second"], init_lora_weights=False, **options)
    plain = get_peft_model(Small().to(dtype), config, autocast_adapter_dtype=False)
    fast = copy.deepcopy(plain)
    assert speed_up(fast) == speed_up(fast) == 2
    return plain, fast


X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1))


def grads(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    model(x).square().sum().backward()
    return [x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]  # type: ignore[list-item]


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}]
)
def test_answers_and_gradients_are_peft_s(options: dict[str, Any]) -> None:
    plain, fast = (m.eval() for m in pair(**options))
    torch.testing.assert_close(fast(X), plain(X), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast(X[0, 0]), plain(X[0, 0]), atol=1e-5, rtol=1e-5)
    plain.train()
    fast.train()
    if "lora_dropout" not in options:
        for mine, theirs in zip(grads(fast, X), grads(plain, X), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_dropout_still_drops() -> None:
    _, fast = pair(lora_dropout=0.9)
    fast.train()
    assert not torch.equal(fast(X), fast(X))


def test_bf16_is_within_its_rounding() -> None:
    plain, fast = pair(torch.bfloat16)
    exact, _ = pair()
    reference = exact(X)
    errors = [(m(X.bfloat16()).float() - reference).abs().max() for m in (plain, fast)]
    assert errors[1] <= 1.5 * errors[0]  # rounded once, so seldom worse
    torch.testing.assert_close(fast(X.bfloat16()), plain(X.bfloat16()), atol=0.1, rtol=0.05)


def test_adapters_are_switched_merged_and_disabled_as_before() -> None:
    plain, fast = pair()
    for model in (plain, fast):
        torch.manual_seed(2)
        model.add_adapter("other", LoraConfig(r=2, target_modules=["first", "second"], init_lora_weights=False))
    for change in (
        lambda m: m.set_adapter("other"),
        lambda m: m.base_model.set_adapter(["default", "other"]),
        lambda m: m.base_model.disable_adapter_layers(),
        lambda m: m.base_model.enable_adapter_layers(),
        lambda m: m.set_adapter("default"),
        lambda m: m.merge_adapter(),
        lambda m: m.unmerge_adapter(),
    ):
        change(plain)
        change(fast)
        torch.testing.assert_close(fast(X), plain(X), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.merge_and_unload()(X), plain(X), atol=1e-5, rtol=1e-5)


def test_layers_that_are_not_plain_are_left_alone() -> None:
    config = LoraConfig(r=2, target_modules=["0"])
    assert speed_up(get_peft_model(nn.Sequential(nn.Embedding(5, 4)), config)) == 0
    assert speed_up(Small()) == 0


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5)])
def test_gradient_equals_finite_differences(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["0", "1"], init_lora_weights=False)
    body = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3, bias=False)).double()
    model = get_peft_model(body, config, autocast_adapter_dtype=False)
    assert speed_up(model) == 2
    weights = [p for p in model.parameters() if p.requires_grad]
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: model(x), (x, *weights))


def test_bases_that_are_trained_too_get_their_gradient() -> None:
    plain, fast = pair()
    for model in (plain, fast):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("first" in name)
    for mine, theirs in zip(grads(fast, X), grads(plain, X), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
