"""A learned prefix of one attention, held by the layer that makes its queries.

The parameters are P_k and P_v themselves (He et al. 2022, equation 6), as in later work, and not the network that made them in Li and Liang 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.models.attention_prefix import Beginning


class Prefix(nn.Module):
    """``length`` keys and values for an attention of ``kv_heads`` heads of ``width``: two (length, kv_heads * width)."""

    def __init__(self, length: int, kv_heads: int, width: int) -> None:
        super().__init__()
        self.kv_heads, self.width = kv_heads, width
        self.keys = nn.Parameter(torch.randn(length, kv_heads * width) * 0.02)
        self.values = nn.Parameter(torch.randn(length, kv_heads * width) * 0.02)

    def beginning(self, gate: Tensor | None = None, *, each_query: bool = False) -> Beginning:
        """What the attention takes; ``gate`` (batch, queries) with ``each_query``, else (batch, 1), multiplies keys and values."""
        keys, values = (
            each.view(1, -1, self.kv_heads, self.width).transpose(1, 2) for each in (self.keys, self.values)
        )
        if gate is None or each_query:
            return Beginning(keys, values, gate)
        whole = gate[:, :, None, None].to(keys.dtype)
        return Beginning(keys * whole, values * whole)


def of_rows(found: Mapping[str, Beginning], names: Sequence[str | None]) -> Beginning | None:
    """One beginning for a batch whose row i the adapter ``names[i]`` answers: the prefixes ``found`` after one another, each seen by its rows."""
    if not found:
        return None
    device = next(iter(found.values())).keys.device
    own = {name: torch.tensor([each == name for each in names], device=device) for name in found}
    keys, values = (
        torch.cat([getattr(each, part).expand(len(names), -1, -1, -1) for each in found.values()], 2)
        for part in ("keys", "values")
    )
    seen = torch.cat([own[name][:, None].expand(-1, each.keys.shape[2]) for name, each in found.items()], 1)
    gate: Tensor | None = None
    for name, each in found.items():
        if each.gate is not None:
            mine = each.gate * own[name][:, None]
            gate = mine if gate is None else gate + mine
    return Beginning(keys, values, gate, seen)


def heads_of(attention: Any) -> tuple[int, int]:
    """(heads of keys and values, width of each) of an attention module. Raises TypeError when it does not say so."""
    config: Any = getattr(attention, "config", None)
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(text, "num_attention_heads", None)
    if heads is None:
        raise TypeError(
            f"a prefix goes before the keys of an attention; {type(attention).__name__} does not say how many heads it has"
        )
    width = next(
        (
            int(value)
            for key in ("head_dim", "attention_head_size", "key_value_proj_dim")
            if isinstance(value := getattr(attention, key, None), int)
        ),
        int(text.hidden_size) // int(heads),
    )
    return int(getattr(text, "num_key_value_heads", None) or heads), width


def use_interface(model: Any) -> None:
    """Make the attentions of ``model`` go through ``luthier.models.attention``, which takes prefixes, on every device.

    Raises ValueError for a model whose attention is its own.
    """
    from luthier.models.attention import NAME, register

    config = model.config.get_text_config() if hasattr(model, "config") else None
    if config is None or config._attn_implementation == NAME:
        return
    register()
    model.set_attn_implementation(NAME)
    if config._attn_implementation != NAME:
        raise ValueError(f"{type(model).__name__} computes attention in its own way, which takes no prefix")
