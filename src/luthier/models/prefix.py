"""Prompts that begin alike: compute the beginning once, within a call and from call to call.

Keys and values of a token depend only on the tokens before it, so those of a shared instruction, of few-shot examples or of a chat's
history can be used again (prompt caching as in llama.cpp). Where they are of whole prompts, they begin with the soft prompt, if there is one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch

from luthier.models.decode import attends_fully, hidden_states
from luthier.models.prefix_tree import KeysValues, PrefixTree, common_length, nbytes_of
from luthier.models.soft_prompt import new_cache

__all__ = ["KeysValues", "PrefixMemory", "common_length"]

SHARE_AT_LEAST = 16
"""A shorter common beginning is not worth a forward of its own."""


class PrefixMemory:
    """Keys and values of recent prompts, least recently used out first; at most ``max_bytes``.

    ``owner`` says whose they are (an adapter's name, None for the bare base): weights that differ give other keys and values.
    Whole prompts are held as they were read (``put``), those of answers that run side by side in a tree (``add``), where what they have in common
    is held once. Not safe from several threads: whoever holds the model holds this too.
    """

    def __init__(self, max_bytes: int = 128 * 2**20) -> None:
        self.max_bytes = max_bytes
        self._held: OrderedDict[tuple[str | None, tuple[int, ...]], KeysValues] = OrderedDict()
        self._ticks: dict[tuple[str | None, tuple[int, ...]], int] = {}
        self._bytes, self._clock = 0, count()
        self._tree = PrefixTree(lambda: next(self._clock))

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self._bytes + self._tree.nbytes

    def longest(self, owner: str | None, ids: Sequence[int]) -> tuple[int, KeysValues | None]:
        """The most tokens of ``ids`` that some held prompt begins with, and that prompt's keys and values."""
        pieces = self._tree.walk(owner, ids)
        best, found = self._longest_held(owner, ids)
        if (common := sum(tokens for tokens, _ in pieces)) > best and common >= SHARE_AT_LEAST:
            soft = self._tree.soft_prompt(owner)
            layers = zip(*[each for each in (soft, *(values for _, values in pieces)) if each], strict=True)
            return common, [(torch.cat([k for k, _ in one], 2), torch.cat([v for _, v in one], 2)) for one in layers]
        if found is None or best < SHARE_AT_LEAST:
            return 0, None
        self._use(found)
        return best, self._held[found]

    def pieces(self, owner: str | None, ids: Sequence[int], virtual: int) -> list[tuple[int, KeysValues]]:
        """What ``longest`` finds, as (tokens, keys and values) one after the other, without the ``virtual`` tokens of a soft prompt."""
        pieces = self._tree.walk(owner, ids)
        best, found = self._longest_held(owner, ids)
        if found is not None and best > sum(tokens for tokens, _ in pieces):
            self._use(found)
            pieces = [(best, [(k[:, :, virtual:], v[:, :, virtual:]) for k, v in self._held[found]])]
        return pieces if sum(tokens for tokens, _ in pieces) >= SHARE_AT_LEAST else []

    def exactly(self, owner: str | None, ids: Sequence[int]) -> KeysValues | None:
        """The keys and values of ``ids``, if they are held as such and not as a part of a longer prompt.

        A part would do as well but for rounding: in bf16 a beginning that was read within other prompts differs in the last digits, and
        the scores of a whole set must not depend on what was asked before it.
        """
        key = (owner, tuple(ids))
        if key not in self._held:
            return None
        self._use(key)
        return self._held[key]

    def put(self, owner: str | None, ids: Sequence[int], values: KeysValues) -> None:
        """Hold a prompt's keys and values; a held prompt that it only continues makes room for it."""
        if not self.takes(nbytes_of(values)):
            return
        ids = tuple(ids)
        for key in [k for k in self._held if k[0] == owner and k[1] == ids[: len(k[1])]]:
            self._drop(key)
        self._held[(owner, ids)] = values
        self._bytes += nbytes_of(values)
        self._use((owner, ids))
        self._make_room()

    def add(
        self, owner: str | None, ids: Sequence[int], read: Callable[[int, int], KeysValues], soft_prompt: KeysValues
    ) -> None:
        """Hold ``ids``, whose keys and values from one token to another ``read`` copies; only what is not held yet is copied."""
        self._tree.add(owner, ids, read, soft_prompt)
        self._make_room()

    def takes(self, size: int) -> bool:
        """Whether a prompt's keys and values of ``size`` bytes would be held."""
        return size <= self.max_bytes // 2

    def forget(self, owner: str | None) -> None:
        """Drop what belongs to ``owner``."""
        for key in [k for k in self._held if k[0] == owner]:
            self._drop(key)
        self._tree.forget(owner)

    def _longest_held(
        self, owner: str | None, ids: Sequence[int]
    ) -> tuple[int, tuple[str | None, tuple[int, ...]] | None]:
        best, found, first = 0, None, tuple(ids[:SHARE_AT_LEAST])
        for key in self._held:
            if key[0] == owner and key[1][: len(first)] == first and (common := common_length(key[1], ids)) > best:
                best, found = common, key
        return best, found

    def _use(self, key: tuple[str | None, tuple[int, ...]]) -> None:
        self._held.move_to_end(key)
        self._ticks[key] = next(self._clock)

    def _drop(self, key: tuple[str | None, tuple[int, ...]]) -> None:
        self._bytes -= nbytes_of(self._held.pop(key))
        del self._ticks[key]

    def _make_room(self) -> None:
        while self.nbytes > self.max_bytes:
            leaf, first = self._tree.oldest(), next(iter(self._held), None)
            if leaf is not None and (first is None or leaf.tick < self._ticks[first]):
                self._tree.drop(leaf)
            elif first is not None:
                self._drop(first)


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


def compute(module: Any, ids: Sequence[int], device: torch.device) -> KeysValues:
    """Keys and values of ``ids``, after those of the soft prompt. With gradients when they are enabled."""
    cache = new_cache(module, 1)
    positions = torch.arange(len(ids), device=device)[None]
    hidden_states(module, torch.tensor([list(ids)], device=device), position_ids=positions, mask=None, cache=cache)
    return [(layer.keys, layer.values) for layer in cache.layers]
