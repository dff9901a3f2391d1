"""A radix tree of token sequences with the keys and values of each: what several prompts begin with is held once.

RadixAttention (Zheng et al. 2024, SGLang, section 3): a node holds the tokens by which it continues its parent, a request walks down as far as
its prompt agrees, and the leaves that nobody walked to for longest go first. Each owner (an adapter's name, None for the bare base) has
a tree of its own: weights that differ give other keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch

KeysValues: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]
"""One (keys, values) pair a layer, each (rows, heads, length, size)."""


class Node:
    """``tokens`` and what each layer holds of them; a root has none, and the keys and values of its owner's soft prompt."""

    __slots__ = ("children", "nbytes", "parent", "tick", "tokens", "values")

    def __init__(self, tokens: tuple[int, ...], values: KeysValues, parent: Node | None, tick: int) -> None:
        self.tokens, self.values, self.parent, self.tick = tokens, values, parent, tick
        self.children: dict[int, Node] = {}
        self.nbytes = nbytes_of(values)


class PrefixTree:
    """The trees of all owners. ``tick`` gives rising numbers: who was used last has the highest."""

    def __init__(self, tick: Callable[[], int]) -> None:
        self._tick = tick
        self._roots: dict[str | None, Node] = {}
        self.nbytes = 0

    def walk(self, owner: str | None, ids: Sequence[int]) -> list[tuple[int, KeysValues]]:
        """The pieces that ``ids`` begins with: (tokens of the piece that count, its keys and values), one after the other."""
        root = self._roots.get(owner)
        return [(count, node.values) for node, count in self._path(root, ids)] if root is not None else []

    def soft_prompt(self, owner: str | None) -> KeysValues:
        """What stands before the first token of ``owner``'s prompts; [] without a soft prompt, or before anything was held."""
        root = self._roots.get(owner)
        return root.values if root is not None else []

    def add(
        self, owner: str | None, ids: Sequence[int], read: Callable[[int, int], KeysValues], soft_prompt: KeysValues
    ) -> None:
        """Hold ``ids``; ``read(start, end)`` gives copies of the keys and values that are not held yet."""
        root = self._roots.get(owner)
        if root is None:
            root = self._roots[owner] = Node((), soft_prompt, None, self._tick())
            root.nbytes = 0  # the adapter's own
        path = self._path(root, ids)
        node, known = root, sum(count for _, count in path)
        if path:
            node, count = path[-1]
            if count < len(node.tokens) and known < len(ids):
                node = self._split(node, count)
        if known < len(ids):
            new = Node(tuple(ids[known:]), read(known, len(ids)), node, self._tick())
            node.children[ids[known]] = new
            self.nbytes += new.nbytes

    def forget(self, owner: str | None) -> None:
        """Drop the tree of ``owner``."""
        root = self._roots.pop(owner, None)
        if root is not None:
            self.nbytes -= sum(node.nbytes for node in _below(root))

    def oldest(self) -> Node | None:
        """The leaf that was used least recently."""
        leaves = (node for root in self._roots.values() for node in _below(root) if not node.children and node.parent)
        return min(leaves, key=lambda node: node.tick, default=None)

    def drop(self, leaf: Node) -> None:
        """Hold ``leaf`` no more."""
        assert leaf.parent is not None and not leaf.children  # what others continue stays
        del leaf.parent.children[leaf.tokens[0]]
        self.nbytes -= leaf.nbytes

    def _path(self, root: Node, ids: Sequence[int]) -> list[tuple[Node, int]]:
        """The nodes that ``ids`` goes through, and how many tokens of each agree; all but the last agree whole. They are used now."""
        out: list[tuple[Node, int]] = []
        node, at, now = root, 0, self._tick()
        while at < len(ids) and (following := node.children.get(ids[at])) is not None:
            count = common_length(following.tokens, ids[at : at + len(following.tokens)])
            following.tick = now
            out.append((following, count))
            node, at = following, at + count
            if count < len(following.tokens):
                break
        return out

    def _split(self, node: Node, count: int) -> Node:
        """Cut ``node`` after its first ``count`` tokens; returns the first half, whose child the second is."""
        assert node.parent is not None
        half = [(k[:, :, :count].clone(), v[:, :, :count].clone()) for k, v in node.values]  # each frees its own
        rest = [(k[:, :, count:].clone(), v[:, :, count:].clone()) for k, v in node.values]
        first = Node(node.tokens[:count], half, node.parent, node.tick)
        first.parent.children[node.tokens[0]] = first  # type: ignore[union-attr]
        node.tokens, node.values, node.parent = node.tokens[count:], rest, first
        node.nbytes = nbytes_of(rest)
        first.children[node.tokens[0]] = node
        return first


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


def nbytes_of(values: KeysValues) -> int:
    """Bytes of all layers."""
    return sum(k.nbytes + v.nbytes for k, v in values)


def _below(root: Node) -> Iterator[Node]:
    waiting = list(root.children.values())
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.children.values()
