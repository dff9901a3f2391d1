"""Which beginnings of many prompts to compute once: a plan over the prefix tree of a whole call.

Sorted prompts and the lengths of their common beginnings are the prefix tree. Each inner node is decided on its own, children first,
by what it saves: its tokens can be read once into memory for everything under it (``Shared``), its branches can go through the model
side by side in one row (``Leaf`` of several units), or it is too short and every branch reads it again. RadixAttention (Zheng et al.
2024) keeps such a tree for a server; here all requests are known beforehand, so that walking it depth first needs one path in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from luthier.models.prefix import common_length

ATTENTION = 1 / 2000
"""What one masked (query, key) pair costs in tokens of a forward: the width of attention over that of all layers' weights is about
1/3000 in small models and less in large ones; the softmax is slower than products."""


@dataclass(frozen=True)
class Unit:
    """A prompt and continuations of it, each with the place of its result."""

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def tokens(self) -> int:
        """Upper bound of the tokens after the prompt that are read (a continuation's last token is only predicted)."""
        return sum(len(tokens) - 1 for _, tokens in self.continuations if tokens)


@dataclass
class Leaf:
    """One row of a batch: ``units`` that share their first ``depth`` tokens, and how many more tokens they have."""

    units: list[Unit]
    depth: int
    inner: int

    def size(self, start: int) -> int:
        """Tokens that go through the model when the first ``start`` are in memory."""
        return self.depth - start + self.inner


@dataclass
class Shared:
    """The first ``depth`` tokens of ``ids`` are kept in memory while ``items`` are computed."""

    ids: tuple[int, ...]
    depth: int
    items: list[Item] = field(default_factory=list)

    def leaves(self) -> list[Leaf]:
        """The rows right under this beginning."""
        return [item for item in self.items if isinstance(item, Leaf)]

    def inner(self) -> list[Shared]:
        """The longer beginnings under this one."""
        return [item for item in self.items if isinstance(item, Shared)]


Item: TypeAlias = Leaf | Shared


def plan(units: Sequence[Unit], *, most: int, forward: int) -> Shared:
    """The root (no tokens) of the plan for ``units``, whose prompts have at least one token each.

    ``most`` tokens fit one forward: no row of several units is longer, and a longer single one is cut into beginnings of this size.
    ``forward`` is what one more forward costs, in tokens. Every unit keeps at least one token of its own prompt.
    """
    ordered = sorted((part for unit in units for part in _split(unit, most)), key=lambda unit: unit.prompt)
    stack = [Shared((), 0)]
    for number, unit in enumerate(ordered):
        after = _common(unit, ordered[number + 1]) if number + 1 < len(ordered) else 0
        leaf = Leaf([unit], len(unit.prompt), unit.tokens)
        if after > stack[-1].depth:
            stack.append(Shared(unit.prompt, after, [leaf]))
            continue
        stack[-1].items.append(leaf)
        while stack[-1].depth > after:
            node = stack.pop()
            start = max(after, stack[-1].depth)
            if start > stack[-1].depth:
                stack.append(Shared(unit.prompt, start))
            stack[-1].items += _decide(node, start, most, forward)
    root = stack[0]
    _cut_long(root, most)
    return root


def _split(unit: Unit, most: int) -> Iterator[Unit]:
    """``unit``, or parts of it when its continuations alone fill more than a forward: those that begin alike together."""
    if unit.tokens <= most or len(unit.continuations) < 2:
        yield unit
        return
    part: list[tuple[int, tuple[int, ...]]] = []
    size = 0
    for place, tokens in sorted(unit.continuations, key=lambda each: each[1]):
        if part and size + len(tokens) > most:
            yield Unit(unit.prompt, tuple(part))
            part, size = [], 0
        part.append((place, tokens))
        size += len(tokens)
    yield Unit(unit.prompt, tuple(part))


def _common(one: Unit, other: Unit) -> int:
    """Tokens that both prompts begin with, leaving one to each."""
    return min(common_length(one.prompt, other.prompt), len(one.prompt) - 1, len(other.prompt) - 1)


def _decide(node: Shared, start: int, most: int, forward: int) -> list[Item]:
    """What becomes of a node whose parent ends at ``start``: itself, one row of all its branches, or its branches alone."""
    length = node.depth - start
    saved = (len(node.items) - 1) * length
    leaves = node.leaves()
    if len(leaves) == len(node.items):
        sizes = [leaf.size(node.depth) for leaf in leaves]
        inner = sum(sizes)
        if length + inner <= most:
            masked = inner * inner - sum(size * size for size in sizes) + length * inner
            in_one_row = saved - ATTENTION * masked
            if in_one_row > max(saved - forward, 0):
                return [Leaf([unit for leaf in leaves for unit in leaf.units], node.depth, inner)]
    return [node] if saved > forward else [part for item in node.items for part in _fitting(item, start, most)]


def _fitting(item: Item, start: int, most: int) -> Iterator[Item]:
    """The item, or the units of a row that with the tokens from ``start`` on is too long for one forward."""
    if isinstance(item, Shared) or len(item.units) == 1 or item.size(start) <= most:
        yield item
        return
    yield from (Leaf([unit], len(unit.prompt), unit.tokens) for unit in item.units)


def _cut_long(root: Shared, most: int) -> None:
    """Read prompts that do not fit one forward piece by piece: the pieces become beginnings of their own."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        for place, item in enumerate(node.items):
            if isinstance(item, Leaf) and len(item.units) == 1 and item.size(node.depth) > most:
                prompt = item.units[0].prompt
                cut = min(node.depth + most, len(prompt) - 1)
                if cut - node.depth >= max(1, most // 2):
                    node.items[place] = Shared(prompt, cut, [item])
        waiting += node.inner()
