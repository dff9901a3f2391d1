from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from luthier.models.decode import attends_fully, causal_model, hidden_states, logits

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.5,
}
IDS = torch.tensor([[1, 5, 9, 2]])


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (LlamaForCausalLM, LlamaConfig(**SHAPE)),
        (Gemma2ForCausalLM, Gemma2Config(**SHAPE, final_logit_softcapping=2.0)),
        (GraniteForCausalLM, GraniteConfig(**SHAPE, logits_scaling=4.0)),
    ],
)
def test_hidden_states_and_logits_make_the_whole_forward(model_class: type, config: object) -> None:
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(model, hidden_states(model, IDS)), model(IDS).logits)


def test_adapters_stay_active() -> None:
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    before = plain(IDS).logits
    model = get_peft_model(plain, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    found = logits(model, hidden_states(model, IDS))
    torch.testing.assert_close(found, model(IDS).logits)
    assert not torch.allclose(found, before)
    assert causal_model(model) is plain


def test_windows_are_noticed() -> None:
    assert attends_fully(LlamaForCausalLM(LlamaConfig(**SHAPE)))
    assert not attends_fully(Gemma2ForCausalLM(Gemma2Config(**SHAPE)))
