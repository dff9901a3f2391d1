"""Attention for CPUs as plain batched matrix products.

PyTorch's fused CPU kernel spends most of a training step in its backward pass at the lengths that tuning sees (a few hundred
tokens). Two ``bmm`` and a softmax are several times faster there, and need memory for one (heads, queries, keys) matrix, so the fused
kernel is kept for long sequences, and on every other device. The numbers are those of the ``eager`` attention of transformers: scores in the working dtype,
softmax accumulated in fp32 (Vaswani et al., 2017, equation 1). ``benchmarks/train.py`` shows what it is worth.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from luthier.models.attention_prefix import attend_after, take

NAME = "luthier_cpu"
MOST_SCORES = 8 * 1024 * 1024
"""Above this many attention scores in one layer the fused kernel is used: from about here on it is the faster one (measured on two
Zen 5 cores, forward and backward), and it does not hold the scores."""


def register() -> str:
    """Make the implementation known to transformers; returns its name for ``attn_implementation``."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    # The masks of sdpa: boolean, or none at all where causality says everything.
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return NAME


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(query key^T * scaling + mask) value.

    Shapes: query (batch, heads, queries, width); key and value (batch, kv_heads, keys, width), each kv head serving heads / kv_heads
    query heads; mask broadcastable to (batch, 1, queries, keys), boolean (True is visible) or additive. Without a mask, and unless
    the module says ``is_causal = False``, query i of the last rows sees keys up to its own position. Returns (batch, queries, heads, width).
    """
    if (beginning := take(module)) is not None:
        return attend_after(beginning, attend, module, query, key, value, attention_mask, scaling, dropout, **kwargs)
    batch, heads, queries, width = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    on_cpu = query.device.type == "cpu"
    if not on_cpu or batch * heads * queries * keys > MOST_SCORES or kwargs.get("position_bias") is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        fused: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return fused
    group = heads // kv_heads
    scale = width**-0.5 if scaling is None else scaling
    # The query heads of one kv head are rows of one product, so keys and values are never repeated.
    q = query.reshape(batch * kv_heads, group * queries, width)
    k = key.reshape(batch * kv_heads, keys, width)
    v = value.reshape(batch * kv_heads, keys, width)
    is_causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    bias = _bias(attention_mask, causal and queries > 1, batch, kv_heads, group, queries, keys, q.dtype)
    if bias is None:
        scores = torch.bmm(q, k.transpose(1, 2)) * scale
    else:
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    weights = scores.softmax(-1)
    if dropout > 0.0:
        weights = torch.nn.functional.dropout(weights, dropout, training=True)
    out = torch.bmm(weights, v)
    return out.view(batch, heads, queries, width).transpose(1, 2).contiguous(), None


def _bias(
    mask: torch.Tensor | None,
    causal: bool,
    batch: int,
    kv_heads: int,
    group: int,
    queries: int,
    keys: int,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """The additive mask, shape (batch * kv_heads, group * queries, keys), without copies where one row of it serves all."""
    if mask is None:
        return _causal(queries, keys, group, dtype).expand(batch * kv_heads, -1, -1) if causal else None
    mask = mask[..., :keys]
    if mask.dtype == torch.bool:
        additive = torch.zeros(mask.shape, dtype=dtype)
        mask = additive.masked_fill_(~mask, torch.finfo(dtype).min)
    elif mask.dtype != dtype:
        mask = mask.to(dtype).clamp_min(torch.finfo(dtype).min)
    if mask.shape[0] == 1 and mask.shape[1] == 1:
        return mask[0].expand(1, queries, keys).repeat(1, group, 1).expand(batch * kv_heads, -1, -1)
    if mask.shape[1] == 1:
        wide = mask[:, :, None].expand(batch, kv_heads, group, queries, keys)
    else:
        wide = mask.reshape(mask.shape[0], kv_heads, group, *mask.shape[2:]).expand(batch, -1, -1, queries, keys)
    return wide.reshape(batch * kv_heads, group * queries, keys)


@lru_cache(maxsize=64)
def _causal(queries: int, keys: int, group: int, dtype: torch.dtype) -> torch.Tensor:
    full = torch.full((queries, keys), torch.finfo(dtype).min, dtype=dtype)
    return full.triu(1 + keys - queries).repeat(group, 1)[None]
