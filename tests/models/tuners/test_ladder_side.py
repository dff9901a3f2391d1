"""The tuner of side networks in models whose blocks choose by their number how to attend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.models import tuners

IDS = torch.tensor([[5, 9, 30, 7, 3], [8, 6, 40, 11, 2]])


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gemma2"])
def test_a_side_block_attends_as_the_block_beside_it(family: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    plain = AutoModelForCausalLM.from_config(config).eval()
    bare = plain(IDS).logits
    module: Any = get_peft_model(plain, tuners.tuner("ladder_side").CONFIG(reduction=2, output="added")).eval()
    torch.testing.assert_close(module(IDS).logits, bare)  # its way up is zero at the start
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "ladder_side" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    sides = [layer.ladder_side["default"].block for layer in module.base_model.model.model.layers]
    if hasattr(config, "layer_types"):
        kinds = [getattr(side, "attention_type", side.self_attn.layer_type) for side in sides]
        assert kinds == config.layer_types
    whole = module(IDS).logits
    assert not torch.allclose(whole, bare, atol=1e-2)
    cache, steps = None, []
    for place in range(IDS.shape[1]):
        with torch.no_grad():
            out = module(IDS[:, place : place + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)
