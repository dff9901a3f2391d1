"""CPU attention against PyTorch's fused kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from luthier.models.attention import attend, register


class Module(torch.nn.Module):
    def __init__(self, is_causal: bool, groups: int = 1) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.num_key_value_groups = groups


def tensors(heads: int, kv_heads: int, queries: int, keys: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, heads, queries, 8), (2, kv_heads, keys, 8), (2, kv_heads, keys, 8))
    return tuple(torch.randn(*s, generator=generator, requires_grad=True) for s in shapes)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (6, 2), (9, 3)])
@pytest.mark.parametrize("queries,keys", [(7, 7), (3, 10), (1, 5)])
@pytest.mark.parametrize("kind", ["none", "bool", "additive", "per_head"])
def test_output_and_gradients_equal_the_fused_kernel(
    heads: int, kv_heads: int, queries: int, keys: int, kind: str
) -> None:
    q, k, v = tensors(heads, kv_heads, queries, keys)
    causal = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    given: torch.Tensor | None = None
    visible = causal[None, None].expand(2, heads if kind == "per_head" else 1, -1, -1).clone()
    if kind != "none" and keys > 1:
        visible[1, :, 1:, 0] = False  # the second row has a padded first key
    if kind == "additive":
        given = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
    elif kind != "none":
        given = visible
    out, _ = attend(Module(True), q, k, v, given, scaling=8**-0.5)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(out, (q, k, v), upstream)
    want = reference(q, k, v, visible)
    expected = torch.autograd.grad(want, (q, k, v), upstream)
    torch.testing.assert_close(out, want, atol=1e-6, rtol=1e-5)
    for got, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, right, atol=1e-6, rtol=1e-5)


def test_encoders_see_everything() -> None:
    q, k, v = tensors(4, 4, 6, 6)
    out, _ = attend(Module(False), q, k, v, None)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v).transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_long_sequences_use_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.models import attention

    q, k, v = tensors(6, 2, 7, 7)
    short, _ = attend(Module(True, 3), q, k, v, None)
    monkeypatch.setattr(attention, "MOST_SCORES", 0)
    long, _ = attend(Module(True, 3), q, k, v, None)
    torch.testing.assert_close(long, short, atol=1e-6, rtol=1e-5)


def test_a_model_answers_as_with_eager_attention(tiny_decoder_path, tiny_encoder_path) -> None:
    from transformers import AutoModel

    name = register()
    ids = torch.randint(3, 250, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    for path in (tiny_decoder_path, tiny_encoder_path):
        ours = AutoModel.from_pretrained(str(path), attn_implementation=name, dtype=torch.float32).eval()
        eager = AutoModel.from_pretrained(str(path), attn_implementation="eager", dtype=torch.float32).eval()
        with torch.no_grad():
            for attention_mask in (None, mask):
                got = ours(input_ids=ids, attention_mask=attention_mask).last_hidden_state
                want = eager(input_ids=ids, attention_mask=attention_mask).last_hidden_state
                torch.testing.assert_close(got[mask.bool()], want[mask.bool()], atol=1e-5, rtol=1e-4)
