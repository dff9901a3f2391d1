"""Log-likelihood of continuations, with every shared token computed once.

The prompts of a call are a prefix tree. What many of them begin with (an instruction, few-shot examples, a document) is read once
into memory, depth first, so that only one path is held; what remains of the prompts under it goes through the model in batches of
like lengths without padding, each row with all its continuations as a tree. Attention to the common beginning is computed for all rows
against the one copy of it (``models.cascade``). Logits are computed only where a continuation reads them, log-softmax in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from luthier.models.cascade import Path, Tree, read_rows, supports
from luthier.models.decode import attends_fully
from luthier.models.log_probs import token_log_probs
from luthier.models.packed import (
    Read,
    Row,
    hidden_at_ends,
    hidden_at_reads,
    log_probs,
    log_probs_with_texts,
    prefix_cache,
    score_masked,
)
from luthier.models.prefix import SHARE_AT_LEAST, KeysValues, PrefixMemory, common_prefix, compute
from luthier.models.soft_prompt import keys_values
from luthier.models.trie import Leaf, Shared, Unit, plan

__all__ = [
    "Read",
    "Row",
    "packed_ends",
    "packed_hidden",
    "packed_log_probs",
    "packed_log_probs_with_texts",
    "score_batches",
    "score_rows",
]

FORWARD_ON_CPU, FORWARD_ELSEWHERE = 32, 1024
"""What one more forward costs, in tokens of a large one: reading the weights and starting the kernels."""


_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Within the block, rows with gradients are one forward whatever they begin with: what they share is computed with each."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def packed_log_probs(module: Any, rows: Sequence[Row], device: torch.device) -> list[torch.Tensor]:
    """Summed log-probability of each continuation, differentiable: one fp32 vector (continuations,) a row.

    One forward for all rows, after one for what all prompts begin with (the instruction); its gradient is the sum over the rows.
    """
    arranged, cache, shared = _arranged(module, rows, device)
    found = log_probs(module, arranged, device, cache, shared) if arranged else []
    flat = torch.cat(found) if found else torch.zeros(0, device=device)
    return list(torch.split(flat, [len(row.continuations) for row in rows]))


def packed_log_probs_with_texts(
    module: Any, rows: Sequence[Row], spans: Sequence[tuple[int, int]], device: torch.device
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """As ``packed_log_probs``; and of each row the summed log-probability of its prompt's tokens from the first to before the second of its
    span, (rows,), from the same forward. A span begins after the first token and is not empty."""
    arranged, cache, shared = _arranged(module, rows, device, most=min(start for start, _ in spans) - 1)
    own = spans
    if len(arranged) != len(rows):  # a row for each continuation: the text is read with the first
        own = [span for row, span in zip(rows, spans, strict=True) for _ in row.continuations]
    found, texts = log_probs_with_texts(module, arranged, own, device, cache, shared)
    sizes = [len(row.continuations) for row in rows]
    if len(arranged) == len(rows):
        return found, texts
    firsts = torch.tensor([sum(sizes[:number]) for number in range(len(sizes))], device=device)
    return list(torch.split(torch.cat(found), sizes)), texts[firsts]


def packed_hidden(
    module: Any, rows: Sequence[Row], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What ``packed_log_probs`` is made of, before the head, differentiable.

    Hidden states where something is read, (places, width); for each token that is read its place, the token, and the number of its
    continuation among all.
    """
    arranged, cache, shared = _arranged(module, rows, device)
    hidden, where, tokens, owners, _ = hidden_at_reads(module, arranged, device, cache, shared)
    return hidden, where, tokens, owners


def packed_ends(module: Any, rows: Sequence[Row], device: torch.device) -> torch.Tensor:
    """Hidden states of the last token of each continuation of each row in turn, (continuations, width), differentiable."""
    arranged, cache, shared = _arranged(module, rows, device)
    return hidden_at_ends(module, arranged, device, cache, shared)[0]


def _arranged(
    module: Any, rows: Sequence[Row], device: torch.device, most: int | None = None
) -> tuple[list[Row], Any, int]:
    """``rows`` as they go through ``module`` with gradients, a cache of what their prompts begin with (at most ``most`` tokens), and its length.

    Where one mask does not fit all layers, every continuation is a row of its own.
    """
    if not attends_fully(module):
        return [Row(row.prompt, [continuation]) for row in rows for continuation in row.continuations], None, 0
    prompts = [row.prompt for row in rows]
    shared = common_prefix(prompts) if len(rows) > 1 and not _alone.get() else 0
    shared = shared if most is None else min(shared, most)
    if shared < SHARE_AT_LEAST:
        return list(rows), None, 0
    prefix = compute(module, prompts[0][:shared], device)
    return list(rows), prefix_cache(module, prefix, shared, len(rows)), shared


def score_rows(
    module: Any, rows: Sequence[Row], device: torch.device, *, max_batch_tokens: int = 1024
) -> list[list[float]]:
    """Summed log-probability of each continuation, in nats; no gradients. See ``score_batches``."""
    out: list[list[float]] = [[]] * len(rows)
    for scored in score_batches(module, rows, device, max_batch_tokens=max_batch_tokens):
        for index, read in scored:
            out[index] = [each.logprob for each in read]
    return out


def score_batches(
    module: Any,
    rows: Sequence[Row],
    device: torch.device,
    *,
    max_batch_tokens: int = 1024,
    memory: PrefixMemory | None = None,
    owner: str | None = None,
) -> Iterator[list[tuple[int, list[Read]]]]:
    """One forward at a time: (row index, its continuations' scores) of each row that it completed.

    A forward reads at most ``max_batch_tokens`` tokens, except for a single longer continuation. In fp32, results depend neither on
    that size nor on the order (to rounding). ``memory`` keeps common beginnings for later calls, under ``owner``. A module is used by
    one caller at a time.
    """
    memory = PrefixMemory() if memory is None else memory
    if not supports(module, device):
        yield from score_masked(module, rows, device, max_batch_tokens, memory, owner)
        return
    yield from _Scoring(module, rows, device, max_batch_tokens, memory, owner).run()


class _Scoring:
    """One call: its results so far, and the path of the prefix tree that is in memory."""

    def __init__(
        self,
        module: Any,
        rows: Sequence[Row],
        device: torch.device,
        most: int,
        memory: PrefixMemory,
        owner: str | None,
    ) -> None:
        self._module, self._rows, self._device = module, rows, device
        self._most, self._memory, self._owner = most, memory, owner
        self._first = [0]  # place of each row's first result
        for row in rows:
            self._first.append(self._first[-1] + len(row.continuations))
        self._values = torch.zeros(self._first[-1], dtype=torch.float64)
        self._missed = torch.zeros(self._first[-1], dtype=torch.float64)
        self._left = [len(row.continuations) for row in rows]
        self._path = Path(0)

    def run(self) -> Iterator[list[tuple[int, list[Read]]]]:
        """Walk the plan depth first."""
        units = _units(self._rows, self._first)
        forward = FORWARD_ON_CPU if self._device.type == "cpu" else FORWARD_ELSEWHERE
        root = plan(units, most=self._most, forward=forward)
        alone = root.items[0] if len(units) == len(root.items) == 1 else None
        most = max(_depth(root, self._most), len(units[0].prompt) if alone else 0)
        self._path = Path(most, self._soft_prompt())
        yield [(number, []) for number, row in enumerate(self._rows) if not row.continuations]
        waiting = [(root, 0)]
        while waiting:
            node, start = waiting.pop()
            yield from self._read_beginning(node, start)
            if isinstance(alone, Leaf):
                yield self._read_alone(alone)
                return
            for batch in _batches(node, self._most):
                yield self._read_leaves(batch, node.depth)
            waiting += [(inner, node.depth) for inner in reversed(node.inner())]

    @torch.inference_mode()
    def _soft_prompt(self) -> KeysValues:
        return keys_values(self._module)

    def _read_beginning(self, node: Shared, start: int) -> Iterator[list[tuple[int, list[Read]]]]:
        """Bring the tokens from ``start`` to the node's end into the path: from memory, or through the model."""
        if node.depth == start:
            return
        ids = node.ids[: node.depth]
        held = self._memory.exactly(self._owner, ids)
        if held is not None:
            self._path.load(held, start, node.depth)
            return
        while start < node.depth:
            piece = ids[start : start + self._most]
            chain = Tree(piece, tuple(range(-1, len(piece) - 1)), tuple(range(len(piece))), ())
            read_rows(self._module, [chain], self._path, start, self._device, keep=len(piece))
            start += len(piece)
            yield []
        self._remember(ids)

    def _read_alone(self, leaf: Leaf) -> list[tuple[int, list[Read]]]:
        """The only prompt of a call: what memory holds of it needs no forward, and it is kept for the next one."""
        (unit,) = leaf.units
        start, held = self._memory.longest(self._owner, unit.prompt[:-1])
        if held is not None:
            self._path.load(held, 0, start)
        done = self._read_leaves([leaf], start, keep=len(unit.prompt) - start)
        self._remember(unit.prompt)
        return done

    def _remember(self, ids: Sequence[int]) -> None:
        """Keep what the path holds of ``ids`` for later calls."""
        if self._memory.takes(self._path.nbytes(len(ids))):
            self._memory.put(self._owner, ids, self._path.copy(len(ids)))

    def _read_leaves(self, leaves: Sequence[Leaf], start: int, keep: int = 0) -> list[tuple[int, list[Read]]]:
        """All rows of a batch in one forward; a single long text in several."""
        trees = [_tree(leaf.units, start) for leaf in leaves]
        if len(trees) == 1 and len(trees[0].tokens) > self._most and trees[0].is_chain:
            for first in range(0, len(trees[0].tokens), self._most):
                piece = trees[0].piece(first, first + self._most)
                self._compute([piece], start + first, keep=len(piece.tokens))
        else:
            self._compute(trees, start, keep)
        return self._completed(place for leaf in leaves for unit in leaf.units for place, _ in unit.continuations)

    @torch.inference_mode()
    def _compute(self, trees: Sequence[Tree], start: int, keep: int) -> None:
        """One forward; what it reads is added to the results."""
        hidden = read_rows(self._module, trees, self._path, start, self._device, keep=keep)
        reads: list[tuple[int, int, int]] = []  # (place among all tokens, token, result)
        offset = 0
        for tree in trees:
            reads += sorted((offset + index, token, place) for place, index, token in tree.reads)
            offset += len(tree.tokens)
        if reads:
            table = torch.tensor(reads, device=self._device)
            places, where = table[:, 0].unique_consecutive(return_inverse=True)  # type: ignore[no-untyped-call]
            values, best = token_log_probs(self._module, hidden[places], where, table[:, 1].contiguous())
            results = table[:, 2].cpu()
            self._values.index_add_(0, results, values.cpu().double())
            self._missed.index_add_(0, results, (~best).cpu().double())

    def _completed(self, places: Iterable[int]) -> list[tuple[int, list[Read]]]:
        """The rows whose last open results are at ``places``."""
        out = []
        rows = torch.searchsorted(torch.tensor(self._first), torch.tensor(list(places)), right=True) - 1
        for number in rows.tolist():
            self._left[number] -= 1
            if not self._left[number]:
                span = slice(self._first[number], self._first[number + 1])
                both = zip(self._values[span].tolist(), self._missed[span].tolist(), strict=True)
                out.append((number, [Read(value, not missed) for value, missed in both]))
        return out


def _units(rows: Sequence[Row], first: Sequence[int]) -> list[Unit]:
    """The distinct prompts with all continuations of each."""
    found: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for number, row in enumerate(rows):
        for place, continuation in enumerate(row.continuations, start=first[number]):
            found.setdefault(tuple(row.prompt), []).append((place, tuple(continuation)))
    return [Unit(prompt, tuple(continuations)) for prompt, continuations in found.items()]


def _depth(root: Shared, most: int) -> int:
    """The most tokens that are held at once: the longest beginning, or a text that is read in several forwards."""
    deepest, waiting = 0, [root]
    while waiting:
        node = waiting.pop()
        long = [leaf.size(0) for leaf in node.leaves() if leaf.size(node.depth) > most]
        deepest = max(deepest, node.depth, *long)
        waiting += node.inner()
    return deepest


def _batches(node: Shared, most: int) -> Iterator[list[Leaf]]:
    """The rows under a beginning, longest first, at most ``most`` tokens together."""
    batch: list[Leaf] = []
    size = 0
    for leaf in sorted(node.leaves(), key=lambda leaf: -leaf.size(node.depth)):
        if batch and size + leaf.size(node.depth) > most:
            yield batch
            batch, size = [], 0
        batch.append(leaf)
        size += leaf.size(node.depth)
    if batch:
        yield batch


def _tree(units: Sequence[Unit], start: int) -> Tree:
    """The tokens of ``units`` after the first ``start``, common ones once."""
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> index
    depths: list[int] = []
    reads: list[tuple[int, int, int]] = []

    def after(parent: int, token: int, depth: int) -> int:
        index = nodes.setdefault((parent, token), len(nodes))
        if index == len(depths):
            depths.append(depth)
        return index

    for unit in units:
        end = -1
        for depth, token in enumerate(unit.prompt[start:]):
            end = after(end, token, depth)
        own = len(unit.prompt) - start
        for place, continuation in unit.continuations:
            at = end
            for number, token in enumerate(continuation):
                reads.append((place, at, token))
                if number + 1 < len(continuation):  # nothing reads what follows the last token
                    at = after(at, token, own + number)
    parents, tokens = zip(*nodes, strict=True)
    return Tree(tokens, parents, tuple(depths), tuple(reads))
