"""Prompts that begin alike: compute the beginning once, within a call and from call to call.

Keys and values of a token depend only on the tokens before it, so those of a shared instruction, of few-shot examples or of a chat's
history can be used again (prompt caching as in llama.cpp; RadixAttention, Zheng et al. 2024, keeps a whole tree of them).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from luthier.models.decode import attends_fully, hidden_states
from luthier.models.soft_prompt import new_cache

KeysValues: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]
"""One (keys, values) pair a layer, each (rows, heads, length, size). Those of a prompt begin with the soft prompt, where there is one."""

SHARE_AT_LEAST = 16
"""A shorter common beginning is not worth a forward of its own."""


class PrefixMemory:
    """Keys and values of recent prompts, least recently used out first; at most ``max_bytes``.

    ``owner`` says whose they are (an adapter's name, None for the bare base): weights that differ give other keys and values.
    Not safe from several threads: whoever holds the model holds this too.
    """

    def __init__(self, max_bytes: int = 128 * 2**20) -> None:
        self.max_bytes = max_bytes
        self._held: OrderedDict[tuple[str | None, tuple[int, ...]], KeysValues] = OrderedDict()

    def longest(self, owner: str | None, ids: Sequence[int]) -> tuple[int, KeysValues | None]:
        """The most tokens of ``ids`` that some held prompt begins with, and that prompt's keys and values."""
        best, found = 0, None
        for key in self._held:
            if key[0] == owner and (common := common_length(key[1], ids)) > best:
                best, found = common, key
        if found is None or best < SHARE_AT_LEAST:
            return 0, None
        self._held.move_to_end(found)
        return best, self._held[found]

    def exactly(self, owner: str | None, ids: Sequence[int]) -> KeysValues | None:
        """The keys and values of ``ids``, if they are held as such and not as a part of a longer prompt.

        A part would do as well but for rounding: in bf16 a beginning that was read within other prompts differs in the last digits, and
        the scores of a whole set must not depend on what was asked before it.
        """
        key = (owner, tuple(ids))
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key]

    def put(self, owner: str | None, ids: Sequence[int], values: KeysValues) -> None:
        """Hold a prompt's keys and values; a held prompt that it only continues makes room for it."""
        if not self.takes(_bytes(values)):
            return
        ids = tuple(ids)
        for key in [k for k in self._held if k[0] == owner and k[1] == ids[: len(k[1])]]:
            del self._held[key]
        self._held[(owner, ids)] = values
        while sum(map(_bytes, self._held.values())) > self.max_bytes:
            self._held.popitem(last=False)

    def takes(self, size: int) -> bool:
        """Whether a prompt's keys and values of ``size`` bytes would be held."""
        return size <= self.max_bytes // 2

    def forget(self, owner: str | None) -> None:
        """Drop what belongs to ``owner``."""
        for key in [k for k in self._held if k[0] == owner]:
            del self._held[key]


@torch.inference_mode()
def shared_prefix(
    module: Any, prompts: Sequence[Sequence[int]], device: torch.device, memory: PrefixMemory, owner: str | None
) -> tuple[int, KeysValues | None]:
    """How many first tokens of all ``prompts`` need no forward in their rows, and their keys and values (of one row).

    For several prompts their common beginning is computed unless ``memory`` holds exactly it; for a single one, whatever is held counts.
    """
    if not prompts or not attends_fully(module):
        return 0, None
    most = common_prefix(prompts)
    if most < SHARE_AT_LEAST:
        return 0, None
    ids = prompts[0][:most]
    if len(prompts) == 1:
        return memory.longest(owner, ids)
    values = memory.exactly(owner, ids)
    if values is None:
        values = compute(module, ids, device)
        memory.put(owner, ids, values)
    return most, values


def expanded(values: KeysValues, shared: int, rows: int) -> KeysValues:
    """The first ``shared`` tokens' keys and values (virtual ones count) as ``rows`` rows: views, nothing is copied."""
    return [(k[:, :, :shared].expand(rows, -1, -1, -1), v[:, :, :shared].expand(rows, -1, -1, -1)) for k, v in values]


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, leaving at least one to each."""
    if not prompts:
        return 0
    smallest, largest = min(prompts, key=tuple), max(prompts, key=tuple)  # first and last in order differ earliest
    return min(common_length(smallest, largest), min(map(len, prompts)) - 1)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning of two sequences."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # comparing slices is fast: halve instead of walking
        middle = (low + high + 1) // 2
        if list(one[low:middle]) == list(other[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low


def compute(module: Any, ids: Sequence[int], device: torch.device) -> KeysValues:
    """Keys and values of ``ids``, after those of the soft prompt. With gradients when they are enabled."""
    cache = new_cache(module, 1)
    positions = torch.arange(len(ids), device=device)[None]
    hidden_states(module, torch.tensor([list(ids)], device=device), position_ids=positions, mask=None, cache=cache)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _bytes(values: KeysValues) -> int:
    return sum(k.nbytes + v.nbytes for k, v in values)
