"""Keys and values of answers in progress, and forwards over whatever tokens their rows need next.

Every answer has a row of the buffers (a slot) and its own length there. One forward takes tokens of many rows, as many of each as it needs:
one of an answer that grows, hundreds of a prompt that is read, a few of a guess that is checked (iteration-level scheduling: Yu et al.
2022, Orca, section 3). Nothing is padded: the model sees a batch of tokens of length 1, each with its position and, where rows have adapters of
their own, with its adapter; in the attention each row attends to its own slot. So rows come and go without moving others.

Models take part whose attention goes through the interface of transformers; ``supports`` compares a few tokens with the model's own forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from luthier.models.attention_prefix import take
from luthier.models.decode import cache_layers, causal_model, hidden_states
from luthier.models.prefix import KeysValues
from luthier.models.rows import answering
from luthier.models.soft_prompt import keys_values

NAME = "luthier_slots"
COLUMNS = 256
"""The buffers grow by at least so many columns."""

_CALL_COSTS = 110
"""Keys of one row that a CPU reads in the time of one more call: rows are joined when that wastes fewer (measured on Zen 5)."""
_MOST_SCORES = 8 * 1024 * 1024
_IGNORED = frozenset(
    {"is_causal", "position_ids", "use_cache", "output_attentions", "cache_position", "sliding_window"}
)
_PROBE = (3, 1, 2, 5, 4, 0, 6)


@dataclass(frozen=True, slots=True)
class Feed:
    """``tokens`` of the row in ``slot`` that follow its first ``start`` columns; the hidden states of the last ``reads`` are wanted.

    ``name`` is the row's adapter as ``models.rows`` calls it.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    reads: int = 1
    name: str | None = None


class Slots:
    """Buffers of ``rows`` slots in each layer, (rows, kv_heads, columns, width), that grow as they are needed."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows, self.columns, self.device = rows, 0, device
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._used: set[int] = set()

    @property
    def free(self) -> int:
        """How many slots are free."""
        return self.rows - len(self._used)

    def open(self) -> int:
        """The lowest free slot, so that what is in use stays together."""
        slot = min(set(range(self.rows)) - self._used)
        self._used.add(slot)
        return slot

    def close(self, slot: int) -> None:
        """``slot`` is free again."""
        self._used.discard(slot)

    def reserve(self, columns: int) -> None:
        """Have room for ``columns`` tokens in every row."""
        if columns > self.columns:
            self.reshape(self.rows, columns)

    def reshape(self, rows: int, columns: int) -> None:
        """From now on ``rows`` slots of ``columns`` tokens (rounded up); what is in use stays where it is, and must be below ``rows``."""
        assert all(slot < rows for slot in self._used)  # whoever asks has closed the others
        self.rows, self.columns = rows, -(-columns // COLUMNS) * COLUMNS
        for number, held in self._layers.items():
            self._layers[number] = self._moved(held[0]), self._moved(held[1])

    @torch.inference_mode()
    def write(self, slot: int, start: int, values: KeysValues, length: int) -> None:
        """Put the first ``length`` columns of ``values`` (layers of (1, kv_heads, tokens, width)) at ``start``."""
        for number, (keys, own) in enumerate(values):
            for held, new in zip(self.layer(number, keys, own), (keys, own), strict=True):
                held[slot, :, start : start + length] = new[0, :, :length]

    @torch.inference_mode()
    def read(self, slot: int, start: int, end: int) -> KeysValues:
        """Copies of the columns ``start`` to ``end`` of a row."""
        held = (self._layers[number] for number in sorted(self._layers))
        return [(k[slot, None, :, start:end].clone(), v[slot, None, :, start:end].clone()) for k, v in held]

    def layer(self, number: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The buffers of a layer, made for what is first put there: (.., kv_heads, tokens, width)."""
        if number not in self._layers:
            self._layers[number] = self._zeros(keys), self._zeros(values)
        return self._layers[number]

    def bytes_of(self, tokens: int) -> int:
        """What ``tokens`` columns of one row take; 0 before anything was put there."""
        if not self._layers:
            return 0
        return sum(
            each.nbytes // (self.rows * self.columns) * tokens for both in self._layers.values() for each in both
        )

    @torch.inference_mode()
    def forward(self, module: Any, feeds: Sequence[Feed], *, mixed: bool = False) -> torch.Tensor:
        """Hidden states (sum of reads, width) of what ``feeds`` ask for, in their order; their keys and values are in the slots after it.

        ``mixed``: each row is answered by the adapter it names, not by the selected one. Raises what the model raises; the slots are
        then as they were for all that counts lengths.
        """
        self.reserve(max(feed.start + len(feed.tokens) for feed in feeds))
        order = sorted(range(len(feeds)), key=lambda n: (len(feeds[n].tokens) > 1, feeds[n].name or "", feeds[n].slot))
        step = _Step(self, [feeds[n] for n in order], module)
        names = tuple(feed.name for feed in step.feeds for _ in feed.tokens) if mixed else None
        with nullcontext() if names is None else answering(names):
            hidden = step.run(module)
        at = np.cumsum([0, *(len(feed.tokens) for feed in step.feeds)])
        wanted: dict[int, range] = {
            n: range(at[place + 1] - feeds[n].reads, at[place + 1]) for place, n in enumerate(order)
        }
        places = [place for n in range(len(feeds)) for place in wanted[n]]
        return hidden[torch.tensor(places, dtype=torch.long, device=self.device)]

    def _zeros(self, like: torch.Tensor) -> torch.Tensor:
        """Zeros, because what is masked must still be a number. On a CPU pages that nobody touches are never taken."""
        shape = (self.rows, like.shape[-3], self.columns, like.shape[-1])
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=like.dtype, device=self.device)
        flat = torch.from_numpy(np.zeros(int(np.prod(shape)) * like.element_size(), dtype=np.uint8))
        return flat.view(like.dtype).view(shape)

    def _moved(self, old: torch.Tensor) -> torch.Tensor:
        new = self._zeros(old)
        kept = min(old.shape[2], self.columns)
        for slot in self._used:
            new[slot, :, :kept] = old[slot, :, :kept]
        return new


@dataclass
class _Run:
    """Some tokens of a forward, and the columns that they see: one a slot (``slots`` in a row), or all of one slot.

    ``mask`` is additive, (queries, keys) of one row or (rows, keys) of several; None: all that is in the columns is seen.
    """

    tokens: slice
    slots: slice
    columns: slice
    mask: torch.Tensor | None
    one_row: bool


@dataclass
class _Step:
    """One forward: its tokens one after the other, those of rows with a single one first."""

    slots: Slots
    feeds: list[Feed]
    module: Any
    rows: torch.Tensor = field(init=False)
    places: torch.Tensor = field(init=False)
    layers: set[int] = field(default_factory=set)
    windows: dict[int, int | None] = field(default_factory=dict)
    runs: dict[int | None, list[_Run]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        device = self.slots.device
        self.rows = torch.tensor([feed.slot for feed in self.feeds for _ in feed.tokens], device=device)
        self.places = torch.tensor(
            [feed.start + n for feed in self.feeds for n in range(len(feed.tokens))], device=device
        )

    def run(self, module: Any) -> torch.Tensor:
        """Hidden states (tokens, width)."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register(NAME, attend)  # no mask function beside it: then models build no mask
        model = causal_model(module)  # a soft prompt is in the slots
        config = model.config.get_text_config()
        own, token = config._attn_implementation, _step.set(self)
        config._attn_implementation = NAME
        try:
            ids = torch.tensor([token for feed in self.feeds for token in feed.tokens], device=self.slots.device)
            return hidden_states(model, ids[:, None], position_ids=self.places[:, None])[:, 0]
        finally:
            config._attn_implementation = own
            _step.reset(token)

    def plan(self, window: int | None, dtype: torch.dtype) -> list[_Run]:
        """What sees what where each token sees ``window`` columns at most, its own among them (None: all)."""
        if window not in self.runs:
            single = sum(len(feed.tokens) == 1 for feed in self.feeds)
            self.runs[window] = [
                *self._singles(self.feeds[:single], window, dtype),
                *self._chunks(self.feeds[single:], single, window, dtype),
            ]
        return self.runs[window]

    def _singles(self, feeds: Sequence[Feed], window: int | None, dtype: torch.dtype) -> list[_Run]:
        """Rows whose slots are neighbours in one run, as long as little is wasted on the shorter ones."""
        out: list[_Run] = []
        seen = [(_first(feed.start, window), feed.start + 1) for feed in feeds]
        cost = _CALL_COSTS if self.slots.device.type == "cpu" else self.slots.rows * self.slots.columns
        first = 0
        for place in range(1, len(feeds) + 1):
            if place < len(feeds) and feeds[place].slot == feeds[place - 1].slot + 1:
                group = seen[first : place + 1]
                low, high = min(lo for lo, _ in group), max(hi for _, hi in group)
                wasted = sum(high - low - (hi - lo) for lo, hi in group)
                if wasted <= cost * (place - first):
                    continue
            group = seen[first:place]
            if group:
                out.append(self._together(feeds[first:place], first, group, dtype))
            first = place
        return out

    def _together(self, feeds: Sequence[Feed], first: int, seen: Sequence[tuple[int, int]], dtype: torch.dtype) -> _Run:
        low, high = min(lo for lo, _ in seen), max(hi for _, hi in seen)
        mask = None
        if any(each != (low, high) for each in seen):
            columns = np.arange(low, high)[None]
            bounds = np.array(seen)
            hidden = torch.from_numpy((columns < bounds[:, :1]) | (columns >= bounds[:, 1:])).to(self.slots.device)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=self.slots.device)
            mask.masked_fill_(hidden, torch.finfo(dtype).min)
        slots = slice(feeds[0].slot, feeds[0].slot + len(feeds))
        return _Run(slice(first, first + len(feeds)), slots, slice(low, high), mask, False)

    def _chunks(self, feeds: Sequence[Feed], first: int, window: int | None, dtype: torch.dtype) -> list[_Run]:
        out: list[_Run] = []
        for feed in feeds:
            count = len(feed.tokens)
            low, high = _first(feed.start, window), feed.start + count
            columns = np.arange(low, high)[None]
            own = np.arange(feed.start, high)[:, None]
            hidden = columns > own
            if window is not None:
                hidden |= columns <= own - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=self.slots.device)
            mask.masked_fill_(torch.from_numpy(hidden).to(self.slots.device), torch.finfo(dtype).min)
            out.append(_Run(slice(first, first + count), slice(feed.slot, feed.slot + 1), slice(low, high), mask, True))
            first += count
        return out


def _first(own: int, window: int | None) -> int:
    """The first column that the token in column ``own`` sees."""
    return 0 if window is None else max(0, own - window + 1)


_step: ContextVar[_Step | None] = ContextVar("slots_step", default=None)


class _NotOfferedError(Exception):
    """A model's attention has a term that is not computed here."""


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
    """The attention of one layer over the rows of the current step; shapes as transformers gives and wants them, tokens in the batch.

    query (tokens, heads, 1, width), key and value (tokens, kv_heads, 1, width); returns (tokens, 1, heads, width).
    """
    step = _step.get()
    if step is None or attention_mask is not None or take(module) is not None:
        raise _NotOfferedError("attention outside of a step, with a mask of the model's own or a learned beginning")
    if any(said is not None and name not in _IGNORED for name, said in kwargs.items()):
        raise _NotOfferedError(f"attention with {', '.join(kwargs)}")
    number: int = module.layer_idx  # type: ignore[assignment]
    window = kwargs.get("sliding_window")
    step.layers.add(number)
    step.windows[number] = window
    keys, values = step.slots.layer(number, key, value)
    keys[step.rows, :, step.places] = key[:, :, 0]
    values[step.rows, :, step.places] = value[:, :, 0]
    tokens, heads, _, width = query.shape
    kv_heads, group = key.shape[1], heads // key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    asked = query.reshape(tokens, kv_heads, group, width)
    out = query.new_empty(tokens, kv_heads, group, value.shape[-1])
    for run in step.plan(window, query.dtype):
        seen_keys, seen_values = keys[run.slots, :, run.columns], values[run.slots, :, run.columns]
        if run.one_row:
            out[run.tokens] = _read(asked[run.tokens], seen_keys, seen_values, run.mask, scale)
        else:
            mask = None if run.mask is None else run.mask[:, None, None]
            out[run.tokens] = torch.nn.functional.scaled_dot_product_attention(
                asked[run.tokens], seen_keys, seen_values, attn_mask=mask, scale=scale
            )
    return out.view(tokens, 1, heads, -1), None


def _read(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Several tokens of one row: query (tokens, kv_heads, group, width), keys and values (1, kv_heads, columns, width), mask (tokens, columns).

    The query heads of one kv head are rows of one product, so keys and values are never repeated.
    """
    assert mask is not None  # a row with several tokens has one
    tokens, kv_heads, group, width = query.shape
    q = query.permute(1, 2, 0, 3).reshape(kv_heads, group * tokens, width)
    bias = mask.repeat(group, 1)
    if q.device.type == "cpu" and kv_heads * bias.numel() <= _MOST_SCORES:  # faster than the fused kernel there
        scores = torch.baddbmm(bias.expand(kv_heads, -1, -1), q, keys[0].transpose(1, 2), alpha=scale)
        found = torch.bmm(scores.softmax(-1), values[0])
    else:
        found = torch.nn.functional.scaled_dot_product_attention(q[None], keys, values, attn_mask=bias, scale=scale)[0]
    return found.view(kv_heads, group, tokens, -1).permute(2, 0, 1, 3)


@torch.inference_mode()
def supports(module: Any, device: torch.device) -> bool:
    """Whether ``module``, as it answers at the moment, gives the same this way as by its own forward."""
    model = causal_model(module)
    slots = Slots(2, device)
    soft = keys_values(module)
    virtual = soft[0][0].shape[2] if soft else 0
    slots.reserve(virtual + len(_PROBE))
    for slot in (0, 1):
        slots.write(slot, 0, soft, virtual)
    try:
        parts = [_PROBE[:4], _PROBE[4:6], _PROBE[6:]]
        found, start = [], virtual
        for part in parts:
            step = _Step(slots, [Feed(0, start, part)], module)
            found.append(step.run(module))
            start += len(part)
    except (_NotOfferedError, TypeError, ValueError, KeyError, AttributeError, RuntimeError, IndexError):
        return False  # its own attention, or one with terms of its own
    finally:
        take_back(module)
    config = model.config.get_text_config()
    if not cache_layers(module) == len(step.layers) == config.num_hidden_layers or not _windows_are_told(config, step):
        return False  # a network beside the base would need slots of its own
    expected = hidden_states(module, torch.tensor([_PROBE], device=device), position_ids=_positions(device))[0]
    off = (torch.cat(found).float() - expected.float()).abs().amax()
    return bool(off <= (1e-3 if expected.dtype == torch.float32 else 0.05) * expected.float().abs().amax())


def take_back(module: Any) -> None:
    """Nothing that was announced to an attention stays behind."""
    from luthier.models.attention_prefix import announce

    announce(module, None)


def _positions(device: torch.device) -> torch.Tensor:
    return torch.arange(len(_PROBE), device=device)[None]


def _windows_are_told(config: Any, step: _Step) -> bool:
    """Whether each layer says the window that the configuration gives it, and no layer has another rule."""
    if getattr(config, "attention_chunk_size", None) is not None:
        return False
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    for number, said in step.windows.items():
        kind = kinds[number] if kinds is not None and number < len(kinds) else None
        if kind is None and said != window:
            return False
        if kind is not None and {"full_attention": None, "sliding_attention": window}.get(kind, -1) != said:
            return False
    return True
