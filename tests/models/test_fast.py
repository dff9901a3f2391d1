from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, VeraConfig, get_peft_model
from torch import nn

from luthier.models import rows
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
    torch.testing.assert_close(fast(X[0, 0]), plain(X[0, 0]).view(-1), atol=1e-5, rtol=1e-5)  # PEFT's DoRA adds a side
    plain.train()
    fast.train()
    if "lora_dropout" not in options:
        for mine, theirs in zip(grads(fast, X), grads(plain, X), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


OTHERS: dict[str, Any] = {
    "adalora": AdaLoraConfig(init_r=4, target_r=2, lora_alpha=12, total_step=2, init_lora_weights=False),
    "vera": VeraConfig(r=6, save_projection=False, d_initial=0.3),
    "loha": LoHaConfig(r=3, alpha=5, init_weights=False),
    "lokr, low rank": LoKrConfig(r=1, alpha=3, init_weights=False),
    "lokr, whole": LoKrConfig(r=8, alpha=3, init_weights=False),
    "lokr, both": LoKrConfig(r=1, alpha=3, decompose_both=True, init_weights=False),
    "lokr, factor": LoKrConfig(r=2, alpha=3, decompose_factor=2, init_weights=False),
    "oft": OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=False),
    "oft, shared": OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=False, block_share=True),
    "oft, neumann": OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=True),
}


def pair_of(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, Any]:
    """The same for a tuner that is not LoRA, with every adapter parameter drawn at random."""
    config = copy.deepcopy(OTHERS[name])
    config.target_modules = {"first", "second"}
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    plain = get_peft_model(Small().to(dtype), config, autocast_adapter_dtype=False)
    for parameter in plain.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
            parameter.data = parameter.data.to(dtype)
    fast = copy.deepcopy(plain)
    assert speed_up(fast) == speed_up(fast) == 2
    return plain, fast


@pytest.mark.parametrize("name", OTHERS)
def test_other_tuners_are_peft_s(name: str) -> None:
    plain, fast = pair_of(name)
    for training in (False, True):
        plain.train(training)
        fast.train(training)
        torch.testing.assert_close(fast(X), plain(X), atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(fast(X[0]), plain(X[0]), atol=1e-5, rtol=1e-5)
        for model in (plain, fast):
            model.zero_grad()
        for mine, theirs in zip(grads(fast, X), grads(plain, X), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["loha", "lokr, low rank", "lokr, both", "oft", "oft, shared", "vera", "adalora"])
def test_other_tuners_take_the_cheap_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = pair_of(name)
    wanted, layer = plain(X), type(fast.base_model.model.first)
    monkeypatch.setattr(layer, "forward", lambda *_: pytest.fail("PEFT's own forward was called"))
    torch.testing.assert_close(fast(X), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_other_tuners_in_bf16_are_within_its_rounding(name: str) -> None:
    exact, _ = pair_of(name)
    plain, fast = pair_of(name, torch.bfloat16)
    reference = exact(X)
    errors = [(model(X.bfloat16()).float() - reference).abs().mean() for model in (plain, fast)]
    assert errors[1] <= 1.5 * errors[0]


@pytest.mark.parametrize("name", OTHERS)
def test_other_tuners_are_switched_merged_and_disabled_as_before(name: str) -> None:
    plain, fast = (model.eval() for model in pair_of(name))
    for change in (
        lambda m: m.base_model.disable_adapter_layers(),
        lambda m: m.base_model.enable_adapter_layers(),
        lambda m: m.merge_adapter(),
        lambda m: m.unmerge_adapter(),
    ):
        change(plain)
        change(fast)
        torch.testing.assert_close(fast(X), plain(X), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.merge_and_unload()(X), plain(X), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name,changes",
    [
        ("loha", {"rank_dropout": 0.6}),
        ("lokr, whole", {"module_dropout": 0.6}),
        ("vera", {"vera_dropout": 0.6}),
        ("adalora", {"lora_dropout": 0.6}),
    ],
)
def test_other_tuners_still_drop(name: str, changes: dict[str, float]) -> None:
    _, fast = pair_of(name, **changes)
    fast.train()
    assert any(not torch.equal(fast(X), fast(X)) for _ in range(20))
    fast.eval()
    assert torch.equal(fast(X), fast(X))


def test_rows_with_adapters_of_their_own_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast = pair_of("vera")
    asked = []
    monkeypatch.setattr(
        type(fast.base_model.model.first), "forward", lambda layer, x: asked.append(layer) or layer.base_layer(x)
    )
    with rows.answering([None, None, None]):
        fast(X)
    assert len(asked) == 2


def test_dora_s_norm_follows_what_it_is_made_of() -> None:
    """Kept between answers, and never when the weights are others: after a step, another adapter's values, a changed base."""
    plain, fast = (model.eval() for model in pair(use_dora=True))

    def same() -> None:
        with torch.no_grad():
            torch.testing.assert_close(fast(X), plain(X), atol=1e-5, rtol=1e-5)

    same()
    flat = fast.base_model.model.first.lora_B["default"].weight
    fast.train()
    fast(X).sum().backward()
    with torch.no_grad():  # as the optimizer does: through memory that is not the parameter's own tensor
        flat.data.mul_(3.0)
        plain.base_model.model.first.lora_B["default"].weight.mul_(3.0)
    fast.eval()
    same()
    with torch.no_grad():
        for model in (plain, fast):
            model.base_model.model.second.lora_A["default"].weight.add_(0.5)
    same()
    for model in (plain, fast):
        base = model.base_model.model.first.base_layer
        base.weight.data = base.weight.data * 2.0
    same()


def test_dora_in_bf16_starts_as_its_base() -> None:
    torch.manual_seed(0)
    base = Small().bfloat16()
    wanted = base(X.bfloat16())
    config = LoraConfig(r=4, target_modules=["first", "second"], use_dora=True)
    fast = get_peft_model(base, config, autocast_adapter_dtype=False)
    speed_up(fast)
    torch.testing.assert_close(fast(X.bfloat16()), wanted, atol=0.02, rtol=0.02)


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
