"""Token by token generation for a batch of prompts, with one key-value cache that never copies what it holds.

The caller owns the loop: ``Answering.step`` gives the next token of every live row, ``finish`` drops rows. So a server can interleave
answers, and an evaluation can stop rows one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from luthier.core.engine import Sampling
from luthier.models.decode import causal_model, hidden_states, logits
from luthier.models.prefix import KeysValues, expanded
from luthier.models.sample import Sampler

FIRST_ROOM = 256
"""New tokens that the cache has room for at once; it doubles when they were not enough."""


class _Slab(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values in a buffer with room to grow: appending writes, it does not copy."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room, self._length = room, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append and return views of all keys and values so far."""
        start, end = self._length, self._length + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [self._new(key_states, max(self._room, end)), self._new(value_states, max(self._room, end))]
        elif end > self._buffers[0].shape[-2]:
            self._grow(max(end, 2 * self._buffers[0].shape[-2]))
        self._buffers[0][:, :, start:end] = key_states
        self._buffers[1][:, :, start:end] = value_states
        self._length = end
        self.keys, self.values = self._buffers[0][:, :, :end], self._buffers[1][:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        self._buffers = [buffer[rows] for buffer in self._buffers]
        self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)

    def _grow(self, room: int) -> None:
        for number, old in enumerate(self._buffers):
            self._buffers[number] = self._new(old, room)
            self._buffers[number][:, :, : self._length] = old[:, :, : self._length]

    @staticmethod
    def _new(like: torch.Tensor, room: int) -> torch.Tensor:
        return like.new_empty(*like.shape[:2], room, like.shape[3])


class Answering:
    """Rows of one batch while they are answered.

    ``prompts`` are token ids, all beginning with the ids whose keys and values ``prefix`` holds (``shared`` tokens; a row keeps at
    least one token of its own). Models that do not attend to everything (``full_attention`` False) take rows of one length, no prefix.
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
    ) -> None:
        self.rows = list(range(len(prompts)))
        self._prompts = [list(prompt) for prompt in prompts]
        self._sampler = Sampler(sampling, self._prompts, device)
        self._device, self._prefix, self._shared = device, prefix, shared
        self._full_attention = full_attention
        self._lengths = torch.tensor([len(prompt) for prompt in self._prompts], device=device)
        self._width = int(self._lengths.max()) if prompts else 0
        self._finished: set[int] = set()
        self._cache: Any = None
        self._unseen: torch.Tensor | None = (
            None  # (rows, 1, 1, kv) additive: hides the padding; None when there is none
        )
        self._last = torch.empty(0)
        self._room = self._width + min(sampling.max_new_tokens, FIRST_ROOM)

    @torch.inference_mode()
    def step(self, module: Any) -> tuple[list[int], list[int], list[float]]:
        """The next token of every live row: (row numbers, tokens, log-probabilities). The first step reads the prompts."""
        hidden = self._read(module) if self._cache is None else self._go_on(module)
        tokens, log_probs = self._sampler.draw(logits(module, hidden))
        self._last = tokens
        live = [place for place, row in enumerate(self.rows) if row not in self._finished]
        rows = [self.rows[place] for place in live]
        return rows, tokens[live].tolist(), log_probs[live].tolist()

    def finish(self, rows: Iterable[int]) -> None:
        """These rows need no more tokens. Their place in the batch is given up when enough of them are done."""
        self._finished.update(rows)

    @property
    def done(self) -> bool:
        """True when every row is finished."""
        return len(self._finished) == len(self._prompts)

    def prompt_cache(self) -> KeysValues:
        """Keys and values of the first row's prompt, for another prompt that begins with it. Only of a batch of one row."""
        length = len(self._prompts[0])
        return [
            (layer.keys[:, :, :length].clone(), layer.values[:, :, :length].clone()) for layer in self._cache.layers
        ]

    def _read(self, module: Any) -> torch.Tensor:
        """Read the prompts, padded on the left after the shared prefix; hidden state of each last token."""
        own = self._width - self._shared
        ids = torch.zeros(len(self.rows), own, dtype=torch.long)
        for number, prompt in enumerate(self._prompts):
            tokens = prompt[self._shared :]
            ids[number, own - len(tokens) :] = torch.tensor(tokens)
        self._cache = self._new_cache(module)
        padding = (self._width - self._lengths)[:, None]
        places = torch.arange(own, device=self._device)[None]
        positions = (places - padding).clamp(min=0) + self._shared
        mask = None
        kind = next(module.parameters()).dtype
        least = torch.finfo(kind).min
        if bool(padding.any()):
            capacity = self._width + self._sampler.sampling.max_new_tokens
            self._unseen = torch.zeros(len(self.rows), 1, 1, capacity, dtype=kind, device=self._device)
            hidden_pad = places < padding
            self._unseen[:, 0, 0, self._shared : self._width] = hidden_pad.to(kind) * least
        if self._unseen is not None or self._shared:
            causal = torch.full((own, own), least, dtype=kind, device=self._device).triu(1)
            causal = torch.cat([causal.new_zeros(own, self._shared), causal], dim=1)[None, None]
            mask = causal if self._unseen is None else torch.minimum(causal, self._unseen[..., : self._width])
        hidden = hidden_states(module, ids.to(self._device), position_ids=positions, mask=mask, cache=self._cache)
        return hidden[:, -1]

    def _new_cache(self, module: Any) -> Any:
        config = causal_model(module).config.get_text_config()
        if not self._full_attention:
            return DynamicCache(config=config)
        cache = Cache(layers=[_Slab(self._room) for _ in range(config.num_hidden_layers)])
        if self._prefix and self._shared:
            for number, (keys, values) in enumerate(expanded(self._prefix, self._shared, len(self.rows))):
                cache.update(keys, values, number)
        return cache

    def _go_on(self, module: Any) -> torch.Tensor:
        """Feed each row's last token; hidden state (rows, width)."""
        live = [place for place, row in enumerate(self.rows) if row not in self._finished]
        if len(live) <= 0.75 * len(self.rows):  # copying the cache for every single row would cost more than it saves
            self._keep(torch.tensor(live, device=self._device))
        self._width += 1
        positions = self._lengths[:, None]
        mask = None if self._unseen is None else self._unseen[..., : self._width]
        hidden = hidden_states(module, self._last[:, None], position_ids=positions, mask=mask, cache=self._cache)
        self._lengths = self._lengths + 1
        return hidden[:, -1]

    def _keep(self, places: torch.Tensor) -> None:
        self.rows = [self.rows[place] for place in places.tolist()]
        self._cache.batch_select_indices(places)
        self._sampler.keep(places)
        self._lengths, self._last = self._lengths[places], self._last[places]
        if self._unseen is not None:
            self._unseen = self._unseen[places]
