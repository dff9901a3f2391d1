"""Learned keys and values in front of those of an attention: prefix tuning at the level of single attentions.

Li and Liang 2021, "Prefix-Tuning", in the form of He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", equation
6: head = Attn(x W_q, concat(P_k, C W_k), concat(P_v, C W_v)). P_k and P_v come after the projections and after any rotation by position, have no
position and are seen by every query; caches never hold them. UniPELT (Mao et al. 2022, section 3.3) multiplies both by a gate.

The layer that makes the queries announces its prefix (``announce``); the attention function of the same module takes it (``take``), which those in
``attention`` and ``cascade`` do. A gate of each query cannot be folded into keys that all queries share; there the product is split in two halves,
[q, g q] with keys [k, 0] and [0, P_k], which any kernel can compute: the scores are q k and g q P_k.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Beginning:
    """``keys`` and ``values`` (1 or batch, kv_heads, length, width), a ``gate`` of each query (batch, queries) or None, and which of them the
    rows of a batch see, ``seen`` (batch, length) booleans; None: all."""

    keys: Tensor
    values: Tensor
    gate: Tensor | None = None
    seen: Tensor | None = None


_announced: ContextVar[tuple[Any, Beginning] | None] = ContextVar("attention_prefix", default=None)


def announce(module: Any, beginning: Beginning | None) -> None:
    """The next attention of ``module`` begins so; None takes back what was said before."""
    _announced.set(None if beginning is None else (module, beginning))


def take(module: Any) -> Beginning | None:
    """What was announced for ``module``, once."""
    said = _announced.get()
    if said is None or said[0] is not module:
        return None
    _announced.set(None)
    return said[1]


def attend_after(
    beginning: Beginning,
    attend: Callable[..., tuple[Tensor, Any]],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """``attend`` with the prefix in front of keys and values; shapes are those of ``attention.attend``."""
    batch, _, queries, width = query.shape
    length, count = beginning.keys.shape[2], key.shape[2]
    p_k, p_v = (each.to(key.dtype).expand(batch, -1, -1, -1) for each in (beginning.keys, beginning.values))
    gate = None if beginning.gate is None else beginning.gate[:, None, :, None].to(query.dtype)
    if gate is not None:
        query = torch.cat([query, gate * query], -1)
        key, value = (functional.pad(each, (0, width)) for each in (key, value))
        p_k, p_v = (functional.pad(each, (width, 0)) for each in (p_k, p_v))
    if mask is None and queries > 1 and _is_causal(module, kwargs):
        mask = _causal(queries, count, query.device)
    elif mask is None and beginning.seen is not None:
        mask = query.new_ones((1, 1, 1, count), dtype=torch.bool)
    if mask is not None:
        mask = _widened(mask[..., :count], length, beginning.seen)
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = functional.pad(kwargs["position_bias"][..., :count], (length, 0))
    out, weights = attend(
        module,
        query,
        torch.cat([p_k, key], 2),
        torch.cat([p_v, value], 2),
        mask,
        scaling=width**-0.5 if scaling is None else scaling,
        dropout=dropout,
        **kwargs,
    )
    if gate is not None:
        out = out[..., :width] + gate.transpose(1, 2) * out[..., width:]
    return out, weights


def _is_causal(module: Any, kwargs: dict[str, Any]) -> bool:
    said = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if said is None else said)


def _widened(mask: Tensor, length: int, seen: Tensor | None) -> Tensor:
    """The mask with ``length`` more keys in front, which every query of a row sees that sees them."""
    plain = mask.dtype == torch.bool
    first = mask.new_ones(()) if plain else mask.new_zeros(())
    if seen is None:
        return torch.cat([first.expand(*mask.shape[:-1], length), mask], -1)
    first = seen if plain else first.masked_fill(~seen, torch.finfo(mask.dtype).min)
    mask = mask.expand(len(seen), *mask.shape[1:])
    return torch.cat([first[:, None, None].expand(*mask.shape[:-1], length), mask], -1)


@lru_cache(maxsize=32)
def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """Booleans (1, 1, queries, keys): the keys up to each query's own, which are the last."""
    return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
