"""Patterns as automata, so that several of them, and bounds of the length, can be held at once: Brzozowski 1964, "Derivatives of regular expressions"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

from luthier.models.patterns import LAST, Chars, Choice, Node, Repeat, Seq, chars

State: TypeAlias = tuple[tuple[int, ...], int]
"""What is left of each pattern, by number (-1: it can match no more), and how many characters were read (no more than matter)."""


def together(
    nodes: Sequence[Node], least: int = 0, most: int | None = None, *, without: Sequence[Node] = ()
) -> tuple[State, Callable[[State], list[tuple[Chars, State]]], Callable[[State], bool]]:
    """Start, edges and acceptance of an automaton for the texts of ``least`` to ``most`` characters that all ``nodes`` match, and none of
    ``without``."""
    held = len(nodes)
    nodes = [*nodes, *without]
    cuts = sorted({edge for node in nodes for low, high in _ranges(node) for edge in (low, high + 1)} | {0, LAST + 1})
    kinds = [kind for kind in (chars((low, high - 1)) for low, high in pairwise(cuts)) if kind.ranges]
    known: list[Node] = []
    numbers: dict[Node, int] = {}
    derived: dict[tuple[int, int], int] = {}

    def numbered(node: Node | None) -> int:
        if node is None:
            return -1
        if node not in numbers:
            numbers[node] = len(known)
            known.append(node)
        return numbers[node]

    def after(number: int, kind: int) -> int:
        if number < 0:
            return -1
        if (number, kind) not in derived:
            derived[number, kind] = numbered(derive(known[number], kinds[kind].ranges[0][0]))
        return derived[number, kind]

    def edges(state: State) -> list[tuple[Chars, State]]:
        left, count = state
        if most is not None and count >= most:
            return []
        then = min(count + 1, least if most is None else most)
        out = []
        for place, kind in enumerate(kinds):
            rest = tuple(after(number, place) for number in left)
            if -1 not in rest[:held]:
                out.append((kind, (rest, then)))
        return out

    def accepts(state: State) -> bool:
        ends = [number >= 0 and nullable(known[number]) for number in state[0]]
        return state[1] >= least and all(ends[:held]) and not any(ends[held:])

    return (tuple(map(numbered, nodes)), 0), edges, accepts


@lru_cache(maxsize=50_000)
def nullable(node: Node) -> bool:
    """Whether the empty text matches."""
    if isinstance(node, Seq):
        return all(map(nullable, node.parts))
    if isinstance(node, Choice):
        return any(map(nullable, node.options))
    return isinstance(node, Repeat) and (not node.least or nullable(node.part))


def matches(node: Node, text: str) -> bool:
    """Whether ``text`` matches."""
    left: Node | None = node
    for letter in text:
        left = derive(left, ord(letter)) if left is not None else None
    return left is not None and nullable(left)


@lru_cache(maxsize=50_000)
def derive(node: Node, code: int) -> Node | None:
    """What must follow once the character ``code`` was read; None when it could not be read."""
    if isinstance(node, Chars):
        return Seq() if any(low <= code <= high for low, high in node.ranges) else None
    if isinstance(node, Choice):
        return _either([derive(option, code) for option in node.options])
    if isinstance(node, Repeat):
        if node.most == 0:
            return None
        rest = Repeat(node.part, max(0, node.least - 1), None if node.most is None else node.most - 1)
        return _then(derive(node.part, code), rest)
    if isinstance(node, Seq):
        options = []
        for at, part in enumerate(node.parts):
            options.append(_then(derive(part, code), Seq(node.parts[at + 1 :])))
            if not nullable(part):
                break
        return _either(options)
    raise TypeError(f"a pattern has no rules; got {node.name}")


def _then(first: Node | None, second: Node) -> Node | None:
    if first is None:
        return None
    parts = [part for node in (first, second) for part in (node.parts if isinstance(node, Seq) else (node,))]
    kept = tuple(part for part in parts if not (isinstance(part, Repeat) and part.most == 0))
    return kept[0] if len(kept) == 1 else Seq(kept)


def _either(options: Sequence[Node | None]) -> Node | None:
    known = dict.fromkeys(
        one
        for option in options
        if option is not None
        for one in (option.options if isinstance(option, Choice) else (option,))
    )
    if len(known) > 1:
        return Choice(tuple(known))
    return next(iter(known), None)


def _ranges(node: Node) -> list[tuple[int, int]]:
    if isinstance(node, Chars):
        return list(node.ranges)
    if isinstance(node, Repeat):
        return _ranges(node.part)
    parts = node.parts if isinstance(node, Seq) else node.options if isinstance(node, Choice) else ()
    return [pair for part in parts for pair in _ranges(part)]
