"""Token by token generation for a batch of prompts, with one key-value cache that never copies what it holds.

The caller owns the loop: ``Answering.step`` gives the next token of every live row, ``finish`` drops rows. So a server can interleave
answers, and an evaluation can stop rows one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from luthier.core.engine import Sampling
from luthier.models.decode import cache_layers, causal_model, hidden_states, logits
from luthier.models.prefix import KeysValues, expanded
from luthier.models.rows import answering
from luthier.models.sample import RowSampler, Sampler
from luthier.models.soft_prompt import keys_values, new_cache, put_into, virtual_tokens

FIRST_ROOM = 256
"""New tokens that the cache has room for at once; it doubles when they were not enough."""


@dataclass
class _Place:
    """Where the next keys and values go: rows of the batch, and the column of the first new token. All layers look here."""

    rows: slice
    start: int


class _Slab(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values in a buffer with room to grow: appending writes, it does not copy."""

    def __init__(self, place: _Place, rows: int, room: int) -> None:
        super().__init__()
        self._place, self._rows, self._room = place, rows, room
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write at the place; returns views of all keys and values of its rows so far."""
        start, end = self._place.start, self._place.start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [self._new(states, max(self._room, end)) for states in (key_states, value_states)]
        elif end > self._buffers[0].shape[-2]:
            self._grow(2 * end)
        self.keys, self.values = (buffer[self._place.rows, :, :end] for buffer in self._buffers)
        self.keys[:, :, start:] = key_states
        self.values[:, :, start:] = value_states
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens before the place."""
        return self._place.start if self.is_initialized else 0

    def batch_select_indices(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        self._buffers = [buffer[rows] for buffer in self._buffers]

    def first_row(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the first row's first ``length`` keys and values."""
        keys, values = (buffer[:1, :, :length].clone() for buffer in self._buffers)
        return keys, values

    def _grow(self, room: int) -> None:
        for number, old in enumerate(self._buffers):
            self._buffers[number] = old.new_zeros(*old.shape[:2], room, old.shape[3])
            self._buffers[number][:, :, : old.shape[2]] = old

    def _new(self, like: torch.Tensor, room: int) -> torch.Tensor:
        return like.new_zeros(
            self._rows, like.shape[1], room, like.shape[3]
        )  # zeros: what is masked must still be a number


class Answering:
    """Rows of one batch while they are answered.

    ``prompts`` are token ids, all beginning with the ids whose keys and values ``prefix`` holds (``shared`` tokens; a row keeps at
    least one token of its own). Models that do not attend to everything (``full_attention`` False) take rows of one length, no prefix.
    The columns of a soft prompt come before all others, in the cache only: lengths, positions and masks are those of real tokens.
    With ``names`` each row has an adapter of its own (``models.rows``); ``own_prefixes`` then gives the keys and values of the shared
    tokens layer by layer, (rows, heads, shared, size), as each row's adapter has them.

    With ``copies`` every prompt is read once and answered so many times: row ``i * copies + j`` is answer j to prompt i. ``seeds`` gives each
    row random numbers of its own; without it they all begin at ``sampling.seed``. ``samplers``: how each row is drawn, in place of both.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        device: torch.device,
        *,
        prefix: KeysValues | None = None,
        shared: int = 0,
        full_attention: bool = True,
        read_tokens: int = 1024,
        names: Sequence[str | None] | None = None,
        own_prefixes: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]] | None = None,
        copies: int = 1,
        seeds: Sequence[int] | None = None,
        samplers: Sequence[RowSampler] | None = None,
    ) -> None:
        self.rows = list(range(len(prompts) * copies))
        self._copies, self._count = copies, len(self.rows)
        self._prompts = [list(prompt) for prompt in prompts]
        asked = [prompt for prompt in self._prompts for _ in range(copies)]
        self._sampler = Sampler.alike(sampling, asked, seeds) if samplers is None else Sampler(samplers)
        self.top: Mapping[int, list[tuple[int, float]]] = {}
        self._device, self._prefix, self._shared = device, prefix, shared
        self._names = None if names is None else tuple(names)
        self._own_prefixes = own_prefixes
        self._full_attention, self._read_tokens = full_attention, read_tokens
        self._lengths = torch.tensor([len(prompt) for prompt in self._prompts], device=device)
        self._width = int(self._lengths.max()) if prompts else 0
        self._finished: set[int] = set()
        self._place = _Place(slice(None), 0)
        self._cache: Any = None
        self._unseen: torch.Tensor | None = (
            None  # (rows, 1, 1, kv) additive: hides the padding; None when there is none
        )
        self._last = torch.empty(0)
        self._most_new = sampling.max_new_tokens
        self._room = self._width + min(self._most_new, FIRST_ROOM)
        self._virtual = 0

    @torch.inference_mode()
    def step(self, module: Any) -> tuple[list[int], list[int], list[float]]:
        """The next token of every live row: (row numbers, tokens, log-probabilities). The first step reads the prompts."""
        tokens, log_probs = self.draw(self.scores(module))
        return self.take(tokens, log_probs)

    @torch.inference_mode()
    def scores(self, module: Any) -> torch.Tensor:
        """Logits of the next token, (places, vocabulary): one place for each row of ``rows``, finished ones among them."""
        hidden = self._read(module) if self._cache is None else self._go_on(module)
        with self._adapters(slice(None)):
            return logits(module, hidden)

    @torch.inference_mode()
    def draw(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A token for each place by its row's own random numbers, and its log-probability under ``scores`` as they are.

        ``top`` then has the likeliest tokens of the rows that asked for them, by row number.
        """
        drawn = self._sampler.draw(scores)
        self.top = {self.rows[place]: found for place, found in drawn.top.items()}
        return drawn.tokens, drawn.log_probs

    @torch.inference_mode()
    def take(self, tokens: torch.Tensor, log_probs: torch.Tensor) -> tuple[list[int], list[int], list[float]]:
        """Go on with these tokens, one a place; of the live rows: (row numbers, tokens, log-probabilities)."""
        self._last = tokens
        live = [place for place, row in enumerate(self.rows) if row not in self._finished]
        rows = [self.rows[place] for place in live]
        return rows, tokens[live].tolist(), log_probs[live].tolist()

    def finish(self, rows: Iterable[int]) -> None:
        """These rows need no more tokens. Their place in the batch is given up when enough of them are done."""
        self._finished.update(rows)

    @torch.inference_mode()
    def reorder(self, places: Sequence[int]) -> None:
        """Place i goes on as what place ``places[i]`` has said; both must be answers to the same prompt."""
        if list(places) != list(range(len(places))):
            self._cache.batch_select_indices(torch.tensor(list(places), device=self._device))

    @property
    def done(self) -> bool:
        """True when every row is finished."""
        return len(self._finished) == self._count

    def prompt_cache(self) -> KeysValues:
        """Keys and values of the prompt of a batch of one row, for another prompt that begins with it."""
        return [layer.first_row(self._virtual + len(self._prompts[0])) for layer in self._cache.layers]

    def _adapters(self, rows: slice) -> AbstractContextManager[None]:
        """Within it, these rows of the batch are answered by their own adapters."""
        return nullcontext() if self._names is None else answering(self._names[rows])

    def _read(self, module: Any) -> torch.Tensor:
        """Read the prompts; hidden state of each one's last token, (rows, width).

        Every prompt ends at the same column, its padding on the left after the shared prefix. Rows go through the model in groups of
        at most ``read_tokens``: larger ones are slower on a CPU, whose caches they overflow.
        """
        kind = next(module.parameters()).dtype
        self._virtual = virtual_tokens(module)
        padding = self._width - self._lengths
        if bool(padding.any()):
            capacity = self._width + self._most_new
            hidden_columns = torch.arange(self._width - self._shared, device=self._device)[None] < padding[:, None]
            self._unseen = torch.zeros(len(self._prompts), 1, 1, capacity, dtype=kind, device=self._device)
            self._unseen[:, 0, 0, self._shared : self._width].masked_fill_(hidden_columns, torch.finfo(kind).min)
        with self._adapters(slice(None)):
            self._cache = self._new_cache(module)
        out = []
        for group in self._groups():
            out.append(self._read_group(module, group, kind))
        self._place.rows, self._place.start = slice(None), self._virtual + self._width
        return self._copied(torch.cat(out))

    def _copied(self, hidden: torch.Tensor) -> torch.Tensor:
        """From one row a prompt to one an answer: cache, lengths, masks, and the hidden states that are given."""
        if self._copies == 1:
            return hidden
        places = torch.arange(len(self._prompts), device=self._device).repeat_interleave(self._copies)
        self._cache.batch_select_indices(places)
        self._lengths = self._lengths[places]
        self._unseen = None if self._unseen is None else self._unseen[places]
        self._names = None if self._names is None else tuple(n for n in self._names for _ in range(self._copies))
        return hidden[places]

    def _groups(self) -> list[slice]:
        """Rows in order, in groups whose padded size is within ``read_tokens``; one group when the cache cannot be cut."""
        if not self._full_attention:
            return [slice(0, len(self._prompts))]
        out, first, widest = [], 0, 0
        for row, prompt in enumerate(self._prompts):
            widest = max(widest, len(prompt) - self._shared)
            if row > first and widest * (row - first + 1) > self._read_tokens:
                out.append(slice(first, row))
                first, widest = row, len(prompt) - self._shared
        return [*out, slice(first, len(self._prompts))]

    def _read_group(self, module: Any, rows: slice, kind: torch.dtype) -> torch.Tensor:
        prompts = self._prompts[rows]
        own = max(map(len, prompts)) - self._shared
        ids = torch.zeros(len(prompts), own, dtype=torch.long)
        for number, prompt in enumerate(prompts):
            tokens = prompt[self._shared :]
            ids[number, own - len(tokens) :] = torch.tensor(tokens)
        self._place.rows, self._place.start = rows, self._virtual + self._width - own
        positions = torch.arange(own, device=self._device)[None] + (self._lengths[rows, None] - own)
        mask = None
        if self._unseen is not None or self._shared or (self._virtual and self._full_attention):
            causal = torch.full((own, own), torch.finfo(kind).min, dtype=kind, device=self._device).triu(1)
            causal = torch.cat([causal.new_zeros(own, self._width - own), causal], dim=1)[None, None]
            mask = causal if self._unseen is None else torch.minimum(causal, self._unseen[rows, ..., : self._width])
        with self._adapters(rows):
            hidden = hidden_states(
                module, ids.to(self._device), position_ids=positions.clamp(min=0), mask=mask, cache=self._cache
            )
        return hidden[:, -1]

    def _new_cache(self, module: Any) -> Any:
        config = causal_model(module).config.get_text_config()
        count, layers, virtual = len(self._prompts), cache_layers(module), self._virtual
        if not self._full_attention:
            return new_cache(module, count) if virtual else DynamicCache(config=config)
        cache = Cache(layers=[_Slab(self._place, count, virtual + self._room) for _ in range(layers)])
        if self._own_prefixes and self._shared:
            for number, (keys, values) in enumerate(self._own_prefixes()):
                cache.update(keys, values, number)
        elif self._prefix and self._shared:
            for number, (keys, values) in enumerate(expanded(self._prefix, virtual + self._shared, count)):
                cache.update(keys, values, number)
        elif virtual:
            put_into(cache, keys_values(module), count)
        return cache

    def _go_on(self, module: Any) -> torch.Tensor:
        """Feed each row's last token; hidden state (rows, width)."""
        live = [place for place, row in enumerate(self.rows) if row not in self._finished]
        if len(live) <= 0.75 * len(self.rows):  # copying the cache for every single row would cost more than it saves
            self._keep(torch.tensor(live, device=self._device))
        self._width += 1
        mask = None if self._unseen is None else self._unseen[..., : self._width]
        with self._adapters(slice(None)):
            hidden = hidden_states(
                module, self._last[:, None], position_ids=self._lengths[:, None], mask=mask, cache=self._cache
            )
        self._lengths = self._lengths + 1
        self._place.start = self._virtual + self._width
        return hidden[:, -1]

    def _keep(self, places: torch.Tensor) -> None:
        kept = places.tolist()
        self.rows = [self.rows[place] for place in kept]
        self._names = None if self._names is None else tuple(self._names[place] for place in kept)
        self._cache.batch_select_indices(places)
        self._sampler.keep(kept)
        self._lengths, self._last = self._lengths[places], self._last[places]
        if self._unseen is not None:
            self._unseen = self._unseen[places]
