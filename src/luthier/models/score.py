"""Log-likelihood of continuations, with every shared token computed once.

All continuations of a prompt go through the model in one row: the prompt, then the continuations as a tree in which common
beginnings are one branch (a token tree as in SpecInfer, Miao et al. 2023, section 4). Position ids restart after the prompt on each
branch, and the attention mask lets a token see the prompt and its own branch only, so that the numbers are those of separate
forwards. What all rows of a call begin with (instruction, few-shot examples) is computed once and its keys and values are shared.
Logits are computed only where a continuation reads them, log-softmax in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from luthier.data.batch import order_by_length
from luthier.models.decode import attends_fully, hidden_states, logits

_SHARE_AT_LEAST = 8
"""A shorter common prefix is not worth a forward of its own."""

_LOGIT_ROWS = 512
"""Positions whose logits are held at once without gradients (512 x 50,000 x 4 bytes is 100 MB)."""


class Row(NamedTuple):
    """One prompt and what may follow it, as token ids. The prompt has at least one token."""

    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]]


@dataclass(frozen=True)
class _Tree:
    """A packed row: tree tokens after the prompt, and where each continuation's tokens are predicted.

    ``parents[i]`` is the tree index of the token before ``tokens[i]`` (-1: the prompt's last). ``reads`` lists, over all
    continuations in turn, (continuation, tree index that predicts or -1, token predicted).
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    reads: tuple[tuple[int, int, int], ...]
    count: int


def _tree(continuations: Iterable[Sequence[int]]) -> _Tree:
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> index
    depths: list[int] = []
    reads: list[tuple[int, int, int]] = []
    count = 0
    for number, continuation in enumerate(continuations):
        count += 1
        at = -1
        for place, token in enumerate(continuation):
            reads.append((number, at, token))
            if place == len(continuation) - 1:
                break  # nothing reads what follows the last token
            key = (at, token)
            if key not in nodes:
                nodes[key] = len(nodes)
                depths.append(place)
            at = nodes[key]
    parents, tokens = zip(*nodes, strict=True) if nodes else ((), ())
    return _Tree(tokens, parents, tuple(depths), tuple(reads), count)


def packed_log_probs(module: Any, rows: Sequence[Row], device: torch.device) -> list[torch.Tensor]:
    """Summed log-probability of each continuation, differentiable: one fp32 vector (continuations,) a row, in one forward."""
    if not attends_fully(module):
        return _regroup(rows, _forward(module, _singly(rows), device, None, 0))
    return _forward(module, rows, device, None, 0)


@torch.inference_mode()
def score_rows(
    module: Any,
    rows: Sequence[Row],
    device: torch.device,
    *,
    max_batch_tokens: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[float]]:
    """Summed log-probability of each continuation, in nats; no gradients.

    Rows are answered in batches of like lengths of at most ``max_batch_tokens`` tokens, padding included; results do not depend on
    batch size or order. ``progress`` is called with (rows done, rows).
    """
    if not rows:
        return []
    if not attends_fully(module):
        flat = _in_batches(
            module, _singly(rows), device, max_batch_tokens=max_batch_tokens, shared=0, progress=progress
        )
        return [[float(v) for v in vector] for vector in _regroup(rows, flat)]
    shared = common_prefix(rows)
    vectors = _in_batches(module, rows, device, max_batch_tokens=max_batch_tokens, shared=shared, progress=progress)
    return [vector.tolist() for vector in vectors]


def common_prefix(rows: Sequence[Row]) -> int:
    """Tokens that all prompts begin with, leaving at least one to each; 0 when sharing would not pay."""
    if len(rows) < 2:
        return 0
    shortest, longest = min(rows, key=lambda r: list(r.prompt)).prompt, max(rows, key=lambda r: list(r.prompt)).prompt
    most = min(len(row.prompt) for row in rows) - 1
    shared = 0
    while shared < most and shortest[shared] == longest[shared]:  # first and last in order differ earliest
        shared += 1
    return shared if shared >= _SHARE_AT_LEAST else 0


def _in_batches(
    module: Any,
    rows: Sequence[Row],
    device: torch.device,
    *,
    max_batch_tokens: int,
    shared: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[torch.Tensor]:
    """The batches behind ``score_rows``, with the first ``shared`` prompt tokens computed once."""
    prefix = prefix_cache(module, rows[0].prompt[:shared], device) if shared else None
    sizes = [len(row.prompt) - shared + len(_tree(row.continuations).tokens) for row in rows]
    out: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    done = 0
    for batch in order_by_length(sizes, max_batch_tokens):
        for index, vector in zip(
            batch, _forward(module, [rows[i] for i in batch], device, prefix, shared), strict=True
        ):
            out[index] = vector
        done += len(batch)
        if progress is not None:
            progress(done, len(rows))
    return out


def prefix_cache(module: Any, ids: Sequence[int], device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of a prefix, one (1, heads, length, size) pair a layer."""
    from transformers import DynamicCache

    cache = DynamicCache()
    hidden_states(module, torch.tensor([list(ids)], device=device), cache=cache)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _expanded(prefix: list[tuple[torch.Tensor, torch.Tensor]], rows: int) -> Any:
    """A cache for ``rows`` rows over the same prefix: views until a layer appends to them."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for number, (keys, values) in enumerate(prefix):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
    return cache


def _forward(module: Any, rows: Sequence[Row], device: torch.device, prefix: Any, shared: int) -> list[torch.Tensor]:
    """One padded forward over packed rows whose first ``shared`` prompt tokens are in ``prefix``."""
    trees = [_tree(row.continuations) for row in rows]
    input_ids, positions, mask = _pack(module, rows, trees, device, shared)
    cache = _expanded(prefix, len(rows)) if shared else None
    hidden = hidden_states(module, input_ids, position_ids=positions, mask=mask, cache=cache)
    places: dict[int, int] = {}  # flat hidden position -> row of the gathered matrix
    reads: list[tuple[int, int, int]] = []  # (gathered row, token, output)
    offset, width = 0, input_ids.shape[1]
    for number, (row, tree) in enumerate(zip(rows, trees, strict=True)):
        last = number * width + len(row.prompt) - shared - 1
        for continuation, node, token in tree.reads:
            place = places.setdefault(last + 1 + node, len(places))
            reads.append((place, token, offset + continuation))
        offset += tree.count
    total = torch.zeros(offset, device=device)
    if reads:
        where, tokens, outputs = (torch.tensor(column, device=device) for column in zip(*reads, strict=True))
        gathered = hidden.reshape(-1, hidden.shape[-1])[torch.tensor(list(places), device=device)]
        total = total.index_add(0, outputs, _token_log_probs(module, gathered, where, tokens))
    return list(torch.split(total, [tree.count for tree in trees]))


def _token_log_probs(module: Any, hidden: torch.Tensor, where: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """fp32 log-probability of ``tokens[i]`` at ``hidden[where[i]]``; logits in slices when no gradient needs them all."""
    step = hidden.shape[0] if torch.is_grad_enabled() else _LOGIT_ROWS
    out = torch.empty(len(tokens), device=hidden.device)
    for start in range(0, hidden.shape[0], step):
        part = logits(module, hidden[start : start + step]).float()
        normaliser = part.logsumexp(-1)
        inside = ((where >= start) & (where < start + step)).nonzero().squeeze(-1)
        at = where[inside] - start
        values = part[at, tokens[inside]] - normaliser[at]
        out = (
            values
            if step == hidden.shape[0] and start == 0 and len(inside) == len(tokens)
            else out.index_copy(0, inside, values)
        )
    return out


def _pack(
    module: Any, rows: Sequence[Row], trees: Sequence[_Tree], device: torch.device, shared: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Padded ids, position ids and additive mask. Without tree tokens or prefix plain causal attention is right: mask None."""
    lengths = [len(row.prompt) - shared for row in rows]
    width = max(length + len(tree.tokens) for length, tree in zip(lengths, trees, strict=True))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    for number, (row, tree, length) in enumerate(zip(rows, trees, lengths, strict=True)):
        whole = [*row.prompt[shared:], *tree.tokens]
        ids[number, : len(whole)] = torch.tensor(whole)
        places = [*range(shared, shared + length), *(shared + length + depth for depth in tree.depths)]
        positions[number, : len(whole)] = torch.tensor(places)
    if not shared and all(_is_chain(tree) for tree in trees):
        return ids.to(device), positions.to(device), None
    seen = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(rows), 1, 1)
    for number, (tree, length) in enumerate(zip(trees, lengths, strict=True)):
        size = len(tree.tokens)
        seen[number, length : length + size, length : length + size] = _branches(tree)
    seen = torch.cat([torch.ones(len(rows), width, shared, dtype=torch.bool), seen], dim=2)
    kind = next(module.parameters()).dtype
    mask = torch.zeros(seen.shape, dtype=kind).masked_fill_(~seen, torch.finfo(kind).min)
    return ids.to(device), positions.to(device), mask.unsqueeze(1).to(device)


def _is_chain(tree: _Tree) -> bool:
    return tree.parents == tuple(range(-1, len(tree.parents) - 1))


def _branches(tree: _Tree) -> torch.Tensor:
    """(nodes, nodes) booleans: which tree tokens each tree token sees (itself and those it follows)."""
    size = len(tree.tokens)
    seen = torch.eye(size, dtype=torch.bool)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen


def _singly(rows: Sequence[Row]) -> list[Row]:
    """One row a continuation, for models that one mask does not fit."""
    return [Row(row.prompt, [continuation]) for row in rows for continuation in row.continuations]


def _regroup(rows: Sequence[Row], vectors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    out, at = [], 0
    for row in rows:
        count = len(row.continuations)
        out.append(torch.cat(list(vectors[at : at + count])) if count else torch.zeros(0))
        at += count
    return out
