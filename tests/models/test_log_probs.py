"""Log-probabilities of single tokens against a whole log-softmax."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.models import log_probs
from luthier.models.log_probs import token_log_probs


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def reads(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    where = torch.randint(0, 40, (count,), generator=draw).sort().values
    return torch.randn(40, 16, generator=draw), where, torch.randint(0, 90, (count,), generator=draw)


@pytest.mark.parametrize("slices", [1, 100])
def test_fp32(model: LlamaForCausalLM, slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probs, "_LOGIT_BYTES", 4 * 90 * slices)
    hidden, where, tokens = reads(120)
    with torch.no_grad():
        whole = model.lm_head(hidden).log_softmax(-1)
    tokens[::3] = whole[where[::3]].argmax(-1)
    values, best = token_log_probs(model, hidden, where, tokens)
    torch.testing.assert_close(values, whole[where, tokens], atol=1e-5, rtol=1e-5)
    assert torch.equal(best, whole[where].argmax(-1) == tokens)


def test_16_bit_models_tell_like_tokens_apart(model: LlamaForCausalLM) -> None:
    hidden, where, tokens = reads(500)
    hidden = hidden * 8  # larger logits: where bf16 has few digits
    low = LlamaForCausalLM(model.config).bfloat16().eval()
    low.load_state_dict(model.state_dict())
    exact = (hidden.bfloat16().float() @ low.lm_head.weight.float().T).log_softmax(-1)[where, tokens]
    values, _ = token_log_probs(low, hidden.bfloat16(), where, tokens)
    rounded = low.lm_head(hidden.bfloat16()).float().log_softmax(-1)[where, tokens]
    assert (values <= 0).all()
    assert (values - exact).abs().mean() < 0.5 * (rounded - exact).abs().mean()


def test_nothing_to_read(model: LlamaForCausalLM) -> None:
    values, best = token_log_probs(model, torch.randn(3, 16), torch.zeros(0).long(), torch.zeros(0).long())
    assert len(values) == len(best) == 0
