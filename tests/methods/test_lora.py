"""LoRA against the paper's equation, and its bounds."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from luthier.core.errors import InputError
from luthier.methods.lora import Config, build
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import open_store


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


@pytest.mark.parametrize("rslora", [False, True])
def test_each_target_computes_w_x_plus_scaled_b_a_x(model: LoadedModel, rslora: bool) -> None:
    config = Config(rank=4, alpha=10, rslora=rslora)
    layer = build(model, config).module.base_model.model.model.layers[0].mlp.down_proj
    base, a, b = layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.count_nonzero(b) == 0
    with torch.no_grad():
        torch.nn.init.normal_(b)
        x = torch.randn(5, base.shape[1])
        scale = 10 / (math.sqrt(4) if rslora else 4)
        torch.testing.assert_close(layer(x), x @ base.T + scale * (x @ a.T) @ b.T, rtol=1e-5, atol=1e-5)


def test_parameter_count_is_rank_times_both_sides_of_every_linear_layer(model: LoadedModel) -> None:
    linear = [m for n, m in model.module.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    expected = sum(8 * (m.in_features + m.out_features) for m in linear)
    built = build(model, Config(rank=8)).module
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == expected
    assert len(linear) == 2 * 7


def test_targets_by_name_and_by_full_name(model: LoadedModel) -> None:
    built = build(model, Config(targets=["v_proj", "model.layers.1.mlp.up_proj"])).module
    found = {
        n.split(".lora_A")[0].removeprefix("base_model.model.model.")
        for n, _ in built.named_parameters()
        if "lora_A" in n
    }
    assert found == {"layers.0.self_attn.v_proj", "layers.1.self_attn.v_proj", "layers.1.mlp.up_proj"}


def test_adapter_weights_follow_the_base_dtype(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="bf16", device="cpu")
    kinds = {p.dtype for p in build(model, Config()).module.parameters() if p.requires_grad}
    assert kinds == {torch.bfloat16}


def test_a_target_that_matches_nothing_names_near_ones(model: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"got 'q_porj', which matches none\. Did you mean 'q_proj'"):
        build(model, Config(targets=["q_porj"]))


def test_a_rank_above_the_dimension_is_refused(model: LoadedModel) -> None:
    with pytest.raises(
        InputError, match=r"method\.rank must be at most 16, the smaller side of .*k_proj \(32 x 16\); got 17"
    ):
        build(model, Config(rank=17))
    assert build(model, Config(rank=17, targets=["q_proj"])).module is not None


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": "some"}])
def test_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Config(**options)  # type: ignore[arg-type]
