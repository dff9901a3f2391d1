"""The fused LoRA layer against PEFT's own forward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from luthier.models.fused import fused


def wrapped(dtype: torch.dtype = torch.float64, *, bias: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(12, 20, bias=bias), nn.GELU(), nn.Linear(20, 6, bias=bias)).to(dtype)
    model = get_peft_model(
        body, LoraConfig(r=3, lora_alpha=7, target_modules=["0", "2"], **options), autocast_adapter_dtype=False
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter)
    return model


def step(model: Any, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    (y.sin() * torch.linspace(1, 2, y.shape[-1], dtype=y.dtype)).sum().backward()
    assert x.grad is not None
    return y.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, x.grad


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 12), (2, 4, 12)])
def test_output_and_gradients_equal_peft(bias: bool, shape: tuple[int, ...]) -> None:
    model = wrapped(bias=bias)
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want, want_gradients, want_x = step(model, x)
    with fused(model) as layers:
        assert layers == 2
        got, gradients, got_x = step(model, x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_x, want_x)
    assert gradients.keys() == want_gradients.keys() and len(gradients) == 4
    for name, value in gradients.items():
        torch.testing.assert_close(value, want_gradients[name])


def test_gradient_equals_finite_differences() -> None:
    from luthier.models.fused import _LoraLinear

    generator = torch.Generator().manual_seed(0)
    x, w, a, b = (
        torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((4, 5), (6, 5), (2, 5), (6, 2))
    )
    for tensor in (x, a, b):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: _LoraLinear.apply(t[0], w, None, t[1], t[2], 0.7), (x, a, b))


def test_the_layers_are_as_before_afterwards() -> None:
    model = wrapped()
    x = torch.randn(3, 12, dtype=torch.float64)
    before = model(x)
    with pytest.raises(RuntimeError, match="stop"), fused(model):
        raise RuntimeError("stop")
    assert all("forward" not in vars(layer) for layer in model.modules())
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True, "bias": True}])
def test_what_is_not_plain_is_left_alone(options: dict[str, Any]) -> None:
    with fused(wrapped(**options)) as layers:
        assert layers == 0


def test_merged_and_several_adapters_are_left_alone() -> None:
    merged = wrapped()
    merged.merge_adapter()
    with fused(merged) as layers:
        assert layers == 0
    two = wrapped()
    two.add_adapter("other", copy.deepcopy(two.peft_config["default"]))
    two.base_model.set_adapter(["default", "other"])
    with fused(two) as layers:
        assert layers == 0


def test_bf16_stays_bf16() -> None:
    model = wrapped(torch.bfloat16)
    x = torch.randn(3, 12, dtype=torch.bfloat16)
    with fused(model):
        y, gradients, _ = step(model, x)
    assert y.dtype == torch.bfloat16 and all(g.dtype == torch.bfloat16 for g in gradients.values())
