"""What merging must not touch; that it adds the adapter is shown with adapters from disk in ``test_attach``."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model

from luthier.core.errors import UnsupportedError
from luthier.methods.lora import Config, build
from luthier.models.load import load_model
from luthier.models.merge import merge
from luthier.store.database import open_store

IDS = torch.tensor([[1, 5, 9, 2]])


@torch.no_grad()
def test_dora_and_plain_lora_merge_to_the_same_answers(tiny_decoder: str) -> None:
    for dora in (False, True):
        model = load_model(open_store(), tiny_decoder, dtype="fp32")
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, use_dora=dora)
        model.module = get_peft_model(model.module, config).eval()
        expected = model.module(IDS).logits
        merged = merge(model)
        torch.testing.assert_close(merged.module(IDS).logits, expected, atol=1e-5, rtol=1e-5)
        assert type(merged.module).__name__ == "LlamaForCausalLM"
        assert merged.module.lm_head.weight is merged.module.model.embed_tokens.weight  # still tied


def test_a_base_comes_back_as_it_is(tiny_encoder: str) -> None:
    model = load_model(open_store(), tiny_encoder)
    assert merge(model) is model


def test_soft_prompts_cannot_be_merged(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32")
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
    model.module = get_peft_model(model.module, config)
    with pytest.raises(UnsupportedError, match="PROMPT_TUNING"):
        merge(model)


def test_rotary_frequencies_stay_in_fp32_when_a_model_in_bf16_is_merged(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="bf16", device="cpu")
    before = {name: buffer.clone() for name, buffer in model.module.named_buffers()}
    merged = merge(build(model, Config(rank=4)))
    after = dict(merged.module.named_buffers())
    assert before.keys() == after.keys() and any("inv_freq" in name for name in before)
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in before)
    assert {p.dtype for p in merged.module.parameters()} == {torch.bfloat16}
