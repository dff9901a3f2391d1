"""Attention to a common beginning and to own tokens, merged, against one softmax over both."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from luthier.models import cascade
from luthier.models.cascade import Path, Tree, _softmax_values, read_rows, supports

CPU = torch.device("cpu")
SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4}


def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {
        "llama": LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**SMALL, **HEADS, head_dim=8)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4)),
    }


def chain(*tokens: int) -> Tree:
    return Tree(tokens, tuple(range(-1, len(tokens) - 1)), tuple(range(len(tokens))), ())


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_hidden_states_equal_plain_forwards(name: str) -> None:
    model = models()[name].eval()
    assert supports(model, CPU)
    before = model.config._attn_implementation
    path = Path(12)
    head = [3, 1, 4, 1, 5, 9, 2, 6]
    first = read_rows(model, [chain(*head[:5])], path, 0, CPU, keep=5)
    second = read_rows(model, [chain(*head[5:])], path, 5, CPU, keep=3)
    forked = Tree((7, 8, 8, 9), (-1, 0, 0, 2), (0, 1, 1, 2), ())  # 7 8 and 7 8' 9
    rows = read_rows(model, [chain(10, 11, 12), forked, chain(13)], path, 8, CPU)
    assert model.config._attn_implementation == before

    def plain(*tokens: int) -> torch.Tensor:
        with torch.no_grad():
            return model.get_decoder()(torch.tensor([[*head, *tokens]])).last_hidden_state[0]

    torch.testing.assert_close(torch.cat([first, second]), plain()[:8], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows[:3], plain(10, 11, 12)[8:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows[3:5], plain(7, 8)[8:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows[5:7], plain(7, 8, 9)[9:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows[7:], plain(13)[8:], atol=1e-5, rtol=1e-5)


def test_models_with_terms_of_their_own_are_refused() -> None:
    gemma = Gemma2ForCausalLM(Gemma2Config(**SMALL, **HEADS, head_dim=8, layer_types=["full_attention"] * 2))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4))
    windows = LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS))
    windows.config.sliding_window = 4
    for model in (gemma, bloom, windows):
        before = model.config._attn_implementation
        assert not supports(model.eval(), CPU)
        assert model.config._attn_implementation == before


@pytest.mark.parametrize("causal", [False, True])
def test_the_way_without_a_fused_kernel_is_the_same(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 7, 8, generator=generator)
    key, value = (torch.randn(2, 1, 7, 8, generator=generator) for _ in range(2))
    wider = torch.cat([value, value], -1)  # values of another width: no fused kernel
    monkeypatch.setattr(cascade, "MOST_SCORES", 100)
    out, weight = _softmax_values(query, key, value, None, causal, 0.3)
    other, other_weight = _softmax_values(query, key, wider, None, causal, 0.3)
    torch.testing.assert_close(other[..., :8], out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other_weight, weight, atol=1e-5, rtol=1e-5)


def test_a_path_holds_and_gives_back() -> None:
    path = Path(6)
    keys = torch.arange(2 * 4 * 3.0).reshape(2, 4, 3)
    path.write(0, 1, keys, -keys)
    path.write(0, 0, keys[:, :1], keys[:, :1])
    held, values = path.read(0, 5)
    assert torch.equal(held[:, 1:], keys) and torch.equal(values[:, 1:], -keys)
    ((copied, _),) = path.copy(3)
    assert copied.shape == (1, 2, 3, 3) and path.nbytes(3) == 2 * 2 * 3 * 3 * 4
    other = Path(6)
    other.load([(copied, copied)], 1, 3)
    assert torch.equal(other.read(0, 3)[0][:, 1:], copied[0, :, 1:3])
