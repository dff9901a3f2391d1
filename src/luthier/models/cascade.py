"""Attention of many short rows to one long common beginning that is held once.

The tokens of all rows go through the model as one sequence without padding. In each layer the queries of all rows attend to the one
copy of the common keys and values, and each row to its own tokens; the two results are merged by their log-sum-exp, which is exact
(Hydragen: Juravsky et al. 2024, equation 3; FlashInfer's cascade attention). A row may be a tree of tokens, each of which sees the
tokens that it follows (SpecInfer: Miao et al. 2023, section 4).

Models take part whose attention goes through the interface of transformers; ``supports`` finds out with one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from luthier.models.attention_prefix import Beginning, take
from luthier.models.decode import attends_fully, cache_layers, causal_model, hidden_states
from luthier.models.prefix import KeysValues

NAME = "luthier_cascade"
MOST_SCORES = 64 * 1024 * 1024
"""Attention scores that are held at once where no fused kernel gives the log-sum-exp."""

_IGNORED = frozenset({"is_causal", "position_ids", "use_cache", "output_attentions", "cache_position"})
"""What models also say to their attention and what changes nothing here: masks and positions are ours."""


@dataclass(frozen=True)
class Tree:
    """A row: its tokens, and which of them each one follows.

    ``parents[i]`` is the index of the token before ``tokens[i]`` (-1: the common beginning's last), ``depths[i]`` its distance from
    the beginning. ``reads`` lists (place of a result, index of the token that predicts, token predicted).
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    reads: tuple[tuple[int, int, int], ...]

    @property
    def is_chain(self) -> bool:
        """Whether each token follows the one before it."""
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    def piece(self, first: int, last: int) -> Tree:
        """Tokens ``first`` to ``last`` of a chain as a row of its own, after the others."""
        tokens = self.tokens[first:last]
        reads = tuple((place, index - first, token) for place, index, token in self.reads if first <= index < last)
        return Tree(tokens, tuple(range(-1, len(tokens) - 1)), tuple(range(len(tokens))), reads)

    def seen(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(tokens, tokens) booleans: which tokens each one sees, itself included."""
        out = np.eye(len(self.tokens), dtype=np.bool_)
        for index, parent in enumerate(self.parents):
            if parent >= 0:
                out[index] |= out[parent]
        return out


class Path:
    """Keys and values of one beginning, in buffers that a walk over a prefix tree writes again and again.

    ``capacity`` tokens at most, after the ``virtual`` ones of a soft prompt, whose keys and values are given and stay; a layer's buffers
    are (kv_heads, virtual + capacity, width). Tokens are counted without the virtual ones, which come along in whatever is read,
    loaded and copied.
    """

    def __init__(self, capacity: int, soft_prompt: KeysValues | None = None) -> None:
        self.virtual = soft_prompt[0][0].shape[2] if soft_prompt else 0
        self.capacity = capacity
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        if soft_prompt:
            self.load(soft_prompt, -self.virtual, 0)

    def write(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Hold ``keys`` and ``values`` (kv_heads, tokens, width) as those of the tokens from ``start`` on."""
        if layer not in self._layers:
            self._layers[layer] = tuple(  # type: ignore[assignment]
                each.new_empty(each.shape[0], self.virtual + self.capacity, each.shape[2]) for each in (keys, values)
            )
        start += self.virtual
        for held, new in zip(self._layers[layer], (keys, values), strict=True):
            held[:, start : start + new.shape[1]] = new

    def read(self, layer: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the first ``length`` keys and values."""
        keys, values = self._layers[layer]
        return keys[:, : self.virtual + length], values[:, : self.virtual + length]

    @torch.inference_mode()
    def load(self, values: KeysValues, start: int, end: int) -> None:
        """Take the tokens ``start`` to ``end`` from keys and values of shape (1, kv_heads, virtual + tokens, width)."""
        span = slice(self.virtual + start, self.virtual + end)
        for layer, (k, v) in enumerate(values):
            self.write(layer, start, k[0, :, span], v[0, :, span])

    def nbytes(self, length: int) -> int:
        """Size of the first ``length`` keys and values of all layers."""
        held, wanted = self.virtual + self.capacity, self.virtual + length
        return sum(each.nbytes // held * wanted for both in self._layers.values() for each in both)

    @torch.inference_mode()
    def copy(self, length: int) -> KeysValues:
        """The first ``length`` keys and values of all layers, to be kept: (1, kv_heads, virtual + length, width)."""
        both = (self.read(layer, length) for layer in sorted(self._layers))
        return [(k[None].clone(), v[None].clone()) for k, v in both]


@dataclass
class Batch:
    """What one forward computes: rows after the first ``start`` tokens in ``path``; ``keep`` of its first tokens go there too."""

    path: Path
    start: int
    keep: int
    widths: list[int]
    padded: torch.Tensor | None  # (rows * widest,) places of the tokens of each row; None for a single row
    real: torch.Tensor | None  # (tokens,) their places among the padded
    mask: torch.Tensor | None  # (rows, 1, widest, widest) additive, later (rows * kv_heads, ...); None: causal
    layers: int = 0  # how many have been through


_batch: ContextVar[Batch | None] = ContextVar("cascade_batch", default=None)
_known: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def supports(module: Any, device: torch.device) -> bool:
    """Whether ``module`` can be computed this way: full attention in all layers, through the interface of transformers."""
    model = causal_model(module)
    if model not in _known:
        _known[model] = attends_fully(module) and _goes_through(module, device)
    return _known[model]


def _goes_through(module: Any, device: torch.device) -> bool:
    batch = _layout([Tree((0,), (-1,), (0,), ())], Path(1), 0, 1, device)
    try:
        _run(module, torch.zeros(1, 1, dtype=torch.long, device=device), torch.zeros(1, 1, device=device).long(), batch)
    except (TypeError, ValueError, KeyError, _NotOfferedError):  # its own attention, or one with terms of its own
        return False
    return batch.layers == cache_layers(module)


class _NotOfferedError(Exception):
    """A model's attention has a term that is not computed here."""


@torch.inference_mode()
def read_rows(
    module: Any, trees: Sequence[Tree], path: Path, start: int, device: torch.device, *, keep: int = 0
) -> torch.Tensor:
    """Last hidden states (tokens of all rows in order, width), the first ``start`` tokens of every row taken from ``path``.

    The keys and values of the first ``keep`` tokens of the first row are written to ``path`` after them.
    """
    ids = torch.tensor([[token for tree in trees for token in tree.tokens]], device=device)
    first = path.virtual + start
    positions = torch.tensor([[first + depth for tree in trees for depth in tree.depths]], device=device)
    batch = _layout(trees, path, start, keep, device)
    return _run(module, ids, positions, batch)[0]


def _run(module: Any, ids: torch.Tensor, positions: torch.Tensor, batch: Batch) -> torch.Tensor:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)  # no mask function beside it: then models build no mask
    config = causal_model(module).config.get_text_config()
    own, token = config._attn_implementation, _batch.set(batch)
    config._attn_implementation = NAME
    try:
        return hidden_states(causal_model(module), ids, position_ids=positions)  # a soft prompt is in the path
    finally:
        config._attn_implementation = own
        _batch.reset(token)


def _layout(trees: Sequence[Tree], path: Path, start: int, keep: int, device: torch.device) -> Batch:
    widths = [len(tree.tokens) for tree in trees]
    widest = max(widths)
    padded = real = mask = None
    if len(trees) > 1:
        places = np.arange(sum(widths))
        number = np.repeat(np.arange(len(trees)), widths)
        within = places - np.repeat(np.cumsum([0, *widths[:-1]]), widths)
        slots = np.zeros(len(trees) * widest, dtype=np.int64)
        slots[number * widest + within] = places
        padded = torch.from_numpy(slots).to(device)
        real = torch.from_numpy(number * widest + within).to(device)
    if not all(tree.is_chain for tree in trees):
        seen = np.tile(np.tri(widest, dtype=np.bool_), (len(trees), 1, 1))
        for row, (tree, width) in enumerate(zip(trees, widths, strict=True)):
            if not tree.is_chain:
                seen[row, :width, :width] = tree.seen()
        visible = torch.from_numpy(seen).to(device)
        mask = torch.zeros(visible.shape, device=device).masked_fill_(~visible, torch.finfo(torch.float32).min)
        mask = mask[:, None]
    return Batch(path, start, keep, widths, padded, real, mask)


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
    """The attention of one layer over the current batch; shapes as transformers gives and wants them, with a batch of 1.

    query (1, heads, tokens, width), key and value (1, kv_heads, tokens, width); returns (1, tokens, heads, width).
    """
    batch = _batch.get()
    if batch is None or dropout or attention_mask is not None:
        raise _NotOfferedError("attention outside of a batch, with dropout or a mask of the model's own")
    if any(said is not None and name not in _IGNORED for name, said in kwargs.items()):
        raise _NotOfferedError(f"attention with {', '.join(kwargs)}")
    batch.layers += 1
    layer: int = module.layer_idx  # type: ignore[assignment]
    heads, tokens, width = query.shape[1:]
    kv_heads = key.shape[1]
    group = heads // kv_heads
    scale = width**-0.5 if scaling is None else scaling
    if batch.keep:
        batch.path.write(layer, batch.start, key[0, :, : batch.keep], value[0, :, : batch.keep])
    out, weight = _own(query[0], key[0], value[0], batch, scale)
    if batch.start or batch.path.virtual:
        keys, values = batch.path.read(layer, batch.start)
        common, common_weight = _softmax_values(
            query[0].view(kv_heads, group, tokens, width), keys[:, None], values[:, None], None, False, scale
        )
        common = common.permute(2, 0, 1, 3).reshape(tokens, heads, -1)
        common_weight = common_weight.permute(2, 0, 1).reshape(tokens, heads)
        share = torch.sigmoid(common_weight - weight)[..., None]  # the part of the softmax that the beginning has
        out = torch.lerp(out, common, share)
        weight = torch.logaddexp(weight, common_weight)
    if (beginning := take(module)) is not None:
        out = _with_prefix(beginning, query, out, weight, kv_heads, scale)
    return out[None].to(query.dtype), None


def _with_prefix(
    beginning: Beginning, query: torch.Tensor, out: torch.Tensor, weight: torch.Tensor, kv_heads: int, scale: float
) -> torch.Tensor:
    """``out`` (tokens, heads, width), whose log-sum-exp is ``weight`` (tokens, heads), with the learned keys and values of an adapter before
    all else (He et al. 2022, equation 7)."""
    heads, tokens, width = query.shape[1:]
    gate = None if beginning.gate is None else beginning.gate[0].to(query.dtype)
    asked = query[0] if gate is None else query[0] * gate[:, None]
    keys, values = (each[0, :, None].to(query.dtype) for each in (beginning.keys, beginning.values))
    own, own_weight = _softmax_values(
        asked.reshape(kv_heads, heads // kv_heads, tokens, width), keys, values, None, False, scale
    )
    own = own.permute(2, 0, 1, 3).reshape(tokens, heads, -1)
    if gate is not None:
        own = own * gate[:, None, None]
    share = torch.sigmoid(own_weight.permute(2, 0, 1).reshape(tokens, heads) - weight)[..., None]
    return torch.lerp(out, own, share)


def _own(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: Batch, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's attention to its own tokens: (tokens, heads, width) and the log-sum-exp of the scores (tokens, heads)."""
    heads, kv_heads, rows, widest = query.shape[0], key.shape[0], len(batch.widths), max(batch.widths)
    group = heads // kv_heads

    def laid_out(states: torch.Tensor) -> torch.Tensor:
        """(rows * kv_heads, heads of one kv head, widest, width)"""
        states = states.transpose(0, 1)
        if batch.padded is not None:
            states = states.index_select(0, batch.padded)
        states = states.reshape(rows, widest, kv_heads, states.shape[1] // kv_heads, states.shape[2])
        return states.permute(0, 2, 3, 1, 4).reshape(rows * kv_heads, -1, widest, states.shape[-1])

    if batch.mask is not None and len(batch.mask) != rows * kv_heads:  # the first layer
        batch.mask = batch.mask.expand(rows, kv_heads, widest, widest).reshape(rows * kv_heads, 1, widest, widest)
    causal = batch.mask is None
    out, weight = _softmax_values(laid_out(query), laid_out(key), laid_out(value), batch.mask, causal, scale)
    out = out.view(rows, kv_heads, group, widest, -1).permute(0, 3, 1, 2, 4).reshape(rows * widest, heads, -1)
    weight = weight.reshape(rows, kv_heads, group, widest).permute(0, 3, 1, 2).reshape(rows * widest, heads)
    if batch.real is not None:
        out, weight = out.index_select(0, batch.real), weight.index_select(0, batch.real)
    return out, weight


def _softmax_values(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(query key^T * scale + mask) value, and the log-sum-exp of the scores in fp32.

    query (n, group, queries, width), key and value (n, 1, keys, width), mask (n, 1, queries, keys) fp32 or None; both fp32, out as
    query, the log-sum-exp (n, group, queries).
    """
    n, group, queries, _ = query.shape
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        # in fp32 also for 16-bit models: the kernel is faster there than in bf16, and the merge needs the digits
        keys, values = (each.float().expand(-1, group, -1, -1) for each in (key, value))
        out, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query.float(), keys, values, 0.0, causal, attn_mask=mask, scale=scale
        )
        return out, weight
    if causal:
        seen = torch.ones(queries, key.shape[2], dtype=torch.bool, device=query.device).tril()
        mask = torch.zeros(seen.shape, device=query.device).masked_fill_(~seen, torch.finfo(torch.float32).min)
        mask = mask.expand(n, 1, -1, -1)
    outs, weights = [], []
    step = max(1, MOST_SCORES // (n * group * key.shape[2]))
    for first in range(0, queries, step):
        scores = (query[:, :, first : first + step] @ key.transpose(2, 3)).float() * scale
        if mask is not None:
            scores = scores + mask[:, :, first : first + step]
        weights.append(scores.logsumexp(-1))
        outs.append((scores.softmax(-1).to(value.dtype) @ value).float())
    return torch.cat(outs, 2), torch.cat(weights, 2)
